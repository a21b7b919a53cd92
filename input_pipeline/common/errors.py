"""The failures that a user can mend. Each is one line that names the flag or file, the value and the remedy."""

import unicodedata

LONGEST_LINE = 2000  # characters


class ExpectedError(Exception):
    """A failure that is not a defect of this project: `main.py` prints its line and exits with `exit_code`."""

    exit_code = 1


def one_line(text):
    """A text for a terminal: what comes out of a foreign file may hold line feeds, colours or a megabyte."""
    if len(text) > LONGEST_LINE:  # the remedy stands at the end
        text = f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def is_plain(character):
    """Whether it is no control character, no line separator and no half of a surrogate pair."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


class SettingError(ExpectedError):
    """A flag has a value that cannot work, by itself, with another flag or with a checkpoint."""

    exit_code = 2

    def __init__(self, name, value, remedy):
        super().__init__(f"--{name}={'' if value is None else value}: {remedy}")


class UnusableError(ExpectedError):
    """Data, a checkpoint or the file system cannot be used."""

    exit_code = 3


class LostWorkerError(ExpectedError):
    """Another worker of the run died, hangs, never came or ended with an error."""

    exit_code = 75
