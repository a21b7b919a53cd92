"""The image files that --inputs names. Does not import TensorFlow."""

import glob
import os

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import IMAGE_FILES, is_hidden


def check_inputs(inputs):
    """Raises SettingError if --inputs names nothing, UnusableError if a folder cannot be read."""
    if not any(True for entry in entries(inputs) for _ in _matches(entry)):
        remedy = f"no such file, no match, or a folder without {', '.join(IMAGE_FILES)}"
        raise SettingError("inputs", printable(inputs), f"{remedy}; give image files, globs or folders")


def list_images(inputs):
    """The paths that --inputs names, each once, in the order of its entries, and sorted within a folder or glob.

    Entries are separated by commas. An entry is a file, whatever its ending; a folder, which is searched with its subfolders for
    IMAGE_FILES, except for names that are hidden and links to folders; or a glob, in which ** stands for any number of
    folders. A name that contains a comma can stand alone. An entry without a match is in the list too, so that it is reported.
    """
    return list(dict.fromkeys(path for entry in entries(inputs) for path in (list(_matches(entry)) or [entry])))


def printable(path):
    """A file name, which may contain any bytes, as text on one line without control characters."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def entries(inputs):
    """The entries of --inputs, which commas separate. A name that contains a comma can stand alone."""
    return [inputs] if os.path.lexists(os.path.expanduser(inputs)) else [entry for entry in inputs.split(",") if entry]


def _matches(entry):
    path = os.path.expanduser(entry)
    for found in [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True)):
        if os.path.isdir(found):
            yield from _images_below(found)
        elif _is_readable(found):
            yield found


def _images_below(root):
    def refuse(error):
        raise UnusableError(f"{printable(error.filename)}: cannot be read ({error.strerror}); change its permissions")

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.lower().endswith(IMAGE_FILES) and not is_hidden(name) and _is_readable(path):
                yield path


def _is_readable(path):
    """Leaves out pipes and devices, which have no end. A broken link counts as readable, so that it is reported as a bad file."""
    return os.path.isfile(path) or not os.path.exists(path)
