"""Files with one JSON object per line: metrics.jsonl and timing.jsonl. Does not import TensorFlow."""

import contextlib
import errno
import json
import math
import os
import pathlib

import numpy as np

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import is_of, parse_json, read_file, replace_file, unusable

LARGEST_FILE = 2**30  # bytes, of `read_some`
LONGEST_LINE = 2**16  # bytes; a record has about 300
# What every record of metrics.jsonl and of timing.jsonl contains at least.
NUMBER = (int, float)
METRICS = "metrics.jsonl"
METRICS_RECORD = {"kind": str, "step": int, "epoch": NUMBER}
TIMING_RECORD = {"step": int, "seconds": NUMBER, "train_seconds": NUMBER, "images": NUMBER,
                 "images_per_second": (*NUMBER, type(None))}


class JsonLines:
    """A file with one JSON object per line, which need not exist yet. NaN and infinity, which JSON does not have, become null.

    `types` is {name: type of the value, or a tuple of types} that every record must contain. Every method raises UnusableError if
    the file cannot be read or written, or if a line is not such a record.
    """

    def __init__(self, path, types=None):
        self.path = pathlib.Path(path)
        self._types = types or {}
        self._pending = b""

    def append(self, record):
        """Writes one record. If that fails, the record is kept and written by the next `append` or `flush`."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._pending += json.dumps(finite).encode() + b"\n"
        self._write_pending()

    def flush(self):
        """Writes the records that could not be written before, and flushes the file to the disk."""
        self._write_pending()
        with unusable(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def _write_pending(self):
        if not self._pending:
            return
        with unusable(self.path), open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(self._pending) < len(self._pending):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)  # half a line would spoil the next one
                raise
        self._pending = b""

    def read(self):
        """Returns all complete records. A last line that a killed process wrote only in part is left out."""
        records, number = [], 0
        with unusable(self.path, "read"):
            if not self.path.exists() or str(self.path) == os.devnull:
                return []
            if not self.path.is_file():
                raise OSError(errno.EINVAL, "it is not a regular file")
            with open(self.path, "rb") as file:
                while line := file.readline(LONGEST_LINE):
                    number += 1
                    if line.strip() and (line.endswith(b"\n") or len(line) == LONGEST_LINE):
                        records.append(self._parse(line, number))
        return records

    def read_some(self, most, whole=None):
        """Returns at most `most` complete records of each kind, evenly spaced, with the first and the last; parses no others.

        Of the kind `whole`, it returns all.
        """
        kinds, whole = {}, f'{{"kind": "{whole}"'.encode()
        with unusable(self.path, "read"):
            try:
                lines = read_file(self.path, LARGEST_FILE).split(b"\n")[:-1]
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                kinds.setdefault(line[: line.find(b",")], []).append((line, number))  # a record begins with its kind
        counts = {kind: len(found) if kind == whole else min(len(found), most) for kind, found in kinds.items()}
        return [self._parse(*found[place]) for kind, found in kinds.items()
                for place in np.linspace(0, len(found) - 1, counts[kind]).round().astype(int)]

    def _parse(self, line, number):
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            record = parse_json(line)
            if all(is_of(record[name], types) for name, types in self._types.items()) and isinstance(record, dict):
                return record
        raise UnusableError(f"{self.path}: line {number} is not a record; remove the line, or give another --workdir")

    def keep(self, is_wanted):
        """Removes the records for which `is_wanted(record)` is false, and a half-written last line, with one rename."""
        kept = [json.dumps(record) + "\n" for record in self.read() if is_wanted(record)]
        with unusable(self.path):
            replace_file(self.path, "".join(kept))
