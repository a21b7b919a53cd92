"""Errors that a user can fix. Each is one line that names the flag or file, the value and the remedy."""

import re
import unicodedata

LONGEST_LINE = 2000  # characters
_TENSORFLOW_NODES = re.compile(r"\[\[\{\{.*?\}\}\]\]|\{\{.*?\}\}| \[Op:.*", re.DOTALL)


class ExpectedError(Exception):
    """An error that is not a defect of this project: `main.py` prints its line and exits with `exit_code`."""

    exit_code = 1


def one_line(text):
    """Makes any text safe to print: escapes line feeds and control characters, and cuts the middle out of a very long text."""
    if len(text) > LONGEST_LINE:  # keep the end, where the remedy is
        text = f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def one_line_of(error):
    """The text of an exception, or its type, on one line of up to 300 characters, without TensorFlow's node names and traces."""
    text = _TENSORFLOW_NODES.sub("", str(error))
    if text.startswith("Graph execution error:"):  # TensorFlow puts the reason last, after the lines that created the node
        text = text.strip().rsplit("\n\n", 1)[-1]
    return " ".join(text.split())[:300] or type(error).__name__


def is_plain(character):
    """Whether a character is neither a control character nor a line separator nor half of a surrogate pair."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


class SettingError(ExpectedError):
    """A flag has a value that is wrong by itself or does not fit another flag or the checkpoint."""

    exit_code = 2

    def __init__(self, name, value, remedy):
        super().__init__(f"--{name}={'' if value is None else value}: {remedy}")


class UnusableError(ExpectedError):
    """Data, a checkpoint or a part of the file system cannot be used."""

    exit_code = 3


class LostWorkerError(ExpectedError):
    """Another worker of this run died, hangs, never started or ended with an error."""

    exit_code = 75
