"""TensorBoard's event files: a copy of the records, which can be made anew from them at any time."""

import contextlib
import math
import pathlib
import re
import shutil

import tensorflow as tf

from input_pipeline.common.small_files import UnusableFile, is_of

KINDS = ("train", "validation")  # the folders of event files
# Of a record; all else is a curve.
NOT_DRAWN = ("kind", "step", "epoch", "examples", "images", "seconds", "train_seconds")


class EventFiles:
    """Writes `train/` and `validation/` in a folder. After a failure all is written anew by the next `flush`.

    Every method raises UnusableFile where the file system refuses.

    Args:
      path: the folder; what else lies in it, such as profiles of an earlier part of the run, stays.
      records: called without arguments, yields (kind, record) of all records so far.
    """

    def __init__(self, path, records):
        self.path = pathlib.Path(path)
        self._records = records
        self._writers = None

    def rewrite(self):
        """Removes the event files and writes one of each kind from the records."""
        self._close()
        with self._naming():
            for kind in KINDS:
                shutil.rmtree(self.path / kind, ignore_errors=True)
            self._writers = {kind: tf.summary.create_file_writer(str(self.path / kind)) for kind in KINDS}
            for kind, record in self._records():
                self._write(kind, record)

    @property
    def is_open(self):
        """Whether records can be added; False from a failure to the `flush` that mends it."""
        return self._writers is not None

    def add(self, kind, record):
        """Adds one record."""
        with self._naming():
            self._write(kind, record)

    def flush(self):
        """Makes everything so far visible to TensorBoard."""
        # A writer whose folder is gone does not say so.
        if not self.is_open or not all((self.path / kind).is_dir() for kind in KINDS):
            self.rewrite()
        with self._naming():
            for writer in self._writers.values():
                writer.flush()

    def _write(self, kind, record):
        if kind not in self._writers:
            return
        with self._writers[kind].as_default(step=record["step"]):
            for name, value in record.items():
                # What is not finite is null in the files, so that writing anew would not draw it either.
                if name not in NOT_DRAWN and is_of(value, (int, float)) and math.isfinite(value):
                    tf.summary.scalar(name, value)

    @contextlib.contextmanager
    def _naming(self):
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._close()
            raise UnusableFile(self.path, first_line(error)) from None

    def _close(self):
        # Now, not when Python thinks of it: a writer whose file is gone makes another one when it is closed.
        for writer in (self._writers or {}).values():
            with contextlib.suppress(OSError, tf.errors.OpError):
                writer.close()
        self._writers = None


def first_line(error):
    """The first line of an exception's text without the names of TensorFlow's nodes, its type where it has none."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", str(error)).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
