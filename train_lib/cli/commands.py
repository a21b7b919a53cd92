"""Commands that the program prints, ready to be pasted into a shell in any folder. Does not import TensorFlow."""

import os
import pathlib
import shlex
import sys

MAIN = pathlib.Path(__file__).parents[2] / "main.py"


def main_command(*arguments):
    """A command that starts main.py with these arguments, by the interpreter, its options and the script of this process."""
    return " ".join(map(quoted, main_words(*arguments)))


def main_words(*arguments):
    """The words of `main_command`, a list, to start a process with."""
    script, options = MAIN, []
    if os.path.basename(sys.argv[0]) == MAIN.name and sys.argv[0] in sys.orig_argv:
        script, options = sys.argv[0], sys.orig_argv[1 : sys.orig_argv.index(sys.argv[0])]
    return _python_words(*options, pathlib.Path(script).absolute(), *arguments)


def python_command(*arguments):
    """A command that starts the interpreter of this process with these arguments."""
    return " ".join(map(quoted, _python_words(*arguments)))


def _python_words(*arguments):
    return [sys.executable or "python3", *map(str, arguments)]


def quoted(word):
    """A word of a command, quoted for a shell if it has to be.

    Bytes that are no text, control characters, and what stdout cannot encode become $'\\xNN', which bash, zsh and ksh read.
    """
    if word.isprintable() and _can_be_encoded(word):
        return shlex.quote(word)
    plain = {"\\": "\\\\", "'": "\\'"} | {chr(code): chr(code) for code in range(32, 127) if chr(code) not in "\\'"}
    return "$'" + "".join(plain.get(chr(byte), f"\\x{byte:02x}") for byte in word.encode("utf-8", "surrogateescape")) + "'"


def _can_be_encoded(word):
    try:
        word.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
