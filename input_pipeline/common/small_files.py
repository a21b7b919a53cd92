"""Reads and replaces small files of JSON and text, without TensorFlow.

A workdir or a checkpoint may come from somebody else. So before reading a file, check that it is a regular file, because reading
a pipe or a device may never end, and that it is not larger than any of ours.
"""

import contextlib
import json
import os
import pathlib
import stat

from input_pipeline.common.errors import UnusableError

LARGEST = 2**24  # bytes; our largest file, a description with the names of 20,000 classes, has 1 MB
REMEDY = "make room or change its permissions, and start the same command again"


def read_file(path, largest=LARGEST):
    """The bytes of a file. Raises OSError if it cannot be read, ValueError if it is not a regular file or is too large."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no plain file")
    if about.st_size > largest:
        raise ValueError(f"has {about.st_size} bytes, the limit is {largest}")
    with open(path, "rb") as file:
        return file.read(largest)


def read_json(path, largest=LARGEST):
    """The value in a JSON file. Errors are those of `read_file` and `parse_json`."""
    return parse_json(read_file(path, largest))


def parse_json(content):
    """The value of JSON bytes. Raises ValueError, and nothing else, if they are not JSON."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def replace_file(path, content):
    """Gives a file new content, a text or bytes. Writes a temporary file, flushes it to the disk and renames it.

    Raises OSError if it cannot be written. The file then has its old content, and the temporary file is removed.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or somebody's link to another file
        with open(temporary, "xb") as file:
            file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


class UnusableFile(UnusableError):
    """The file system refuses access to a file or folder: its `path`, and the `reason`."""

    def __init__(self, path, reason, verb="written"):
        super().__init__(f"{path}: cannot be {verb} ({reason}); {REMEDY}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def unusable(path, verb="written"):
    """Context manager that turns an OSError into an UnusableFile, which says that `path` cannot be `verb`."""
    try:
        yield
    except OSError as error:
        raise UnusableFile(path, error.strerror or str(error), verb) from None


def is_of(value, types):
    """Whether a JSON value has one of the types. true and false are not numbers, nor are integers beyond int64."""
    return isinstance(value, types) and not isinstance(value, bool) and (not isinstance(value, int) or abs(value) < 2**63)
