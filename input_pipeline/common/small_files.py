"""Files of JSON and text: read only as far as one of ours could reach, replaced as a whole. Knows no TensorFlow.

A workdir or a checkpoint may come from elsewhere. What is read of it is first seen to be a plain file (a pipe or a device would
be read for ever) of at most so many bytes.
"""

import contextlib
import json
import os
import pathlib
import stat

from input_pipeline.common.errors import UnusableError

LARGEST = 2**24  # bytes; the largest of ours, a description that names 20,000 classes, has 1 MB
REMEDY = "make room or mend its permissions, and start the same command again"


def read_file(path, largest=LARGEST):
    """The bytes of a file.

    Raises:
      OSError: it cannot be read; ValueError: it is no plain file, or larger than `largest` bytes.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no plain file")
    if about.st_size > largest:
        raise ValueError(f"has {about.st_size} bytes, the limit is {largest}")
    with open(path, "rb") as file:
        return file.read(largest)


def read_json(path, largest=LARGEST):
    """The value in a JSON file.

    Raises:
      OSError: it cannot be read; ValueError: it is no plain file, too large, or no JSON.
    """
    return parse_json(read_file(path, largest))


def parse_json(content):
    """The value of JSON bytes. Raises ValueError, and nothing else, where they are none."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def replace_file(path, content):
    """Gives a file new content, a text or bytes, or leaves it as it was: written beside it, flushed to the disk, renamed.

    Raises:
      OSError: it cannot be written; nothing is left beside it.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        if os.path.lexists(temporary):  # of a killed process, or somebody's link to a file that is not ours
            temporary.unlink()
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


class UnusableFile(UnusableError):
    """A file or folder that the file system refuses: `path`, and the `reason` it gives."""

    def __init__(self, path, reason, verb="written"):
        super().__init__(f"{path}: cannot be {verb} ({reason}); {REMEDY}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def unusable(path, verb="written"):
    """Inside, an OSError becomes the UnusableFile that says that `path` cannot be `verb`."""
    try:
        yield
    except OSError as error:
        raise UnusableFile(path, error.strerror or str(error), verb) from None


def is_of(value, types):
    """Whether a JSON value is of one of the types. true and false are no numbers, nor is what no float or int64 can hold."""
    return isinstance(value, types) and not isinstance(value, bool) and (not isinstance(value, int) or abs(value) < 2**63)
