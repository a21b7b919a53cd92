"""Files of one JSON object a line: metrics.jsonl and timing.jsonl."""

import contextlib
import errno
import itertools
import json
import math
import os
import pathlib

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import is_of, parse_json, replace_file, unusable

LONGEST_LINE = 2**16  # bytes; a record has about 300
# What each record of metrics.jsonl and of timing.jsonl holds at least.
NUMBER = (int, float)
METRICS_RECORD = {"kind": str, "step": int, "epoch": NUMBER}
TIMING_RECORD = {"step": int, "seconds": NUMBER, "train_seconds": NUMBER, "images": NUMBER,
                 "images_per_second": (*NUMBER, type(None))}


class JsonLines:
    """A file of one JSON object a line, each written at once. A NaN or infinity, which JSON has not, becomes null.

    Args:
      path: the file; it need not be there yet.
      types: {name: the type of its value, or several}, of what every record holds.

    Every method raises UnusableError where the file cannot be read or written, or holds a line that is no such record.
    """

    def __init__(self, path, types=None):
        self.path = pathlib.Path(path)
        self._types = types or {}
        self._pending = b""

    def append(self, record):
        """Adds one record. One that cannot be written is kept, and written before the next or by `flush`."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._pending += json.dumps(finite).encode() + b"\n"
        self._write()

    def flush(self):
        """Writes what could not be written yet, and flushes the file to the disk."""
        self._write()
        with unusable(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def _write(self):
        """Writes all of what is pending, or nothing: half a line would spoil the next."""
        if not self._pending:
            return
        with unusable(self.path), open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(self._pending) < len(self._pending):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        self._pending = b""

    def read(self):
        """All complete records; a last line that a killed process left half-written is not one."""
        return list(self._records())

    def _records(self):
        with unusable(self.path, "read"):
            if not self.path.exists() or str(self.path) == os.devnull:
                return
            if not self.path.is_file():
                raise OSError(errno.EINVAL, "it is no plain file")
            with open(self.path, "rb") as file:
                for number in itertools.count(1):
                    line = file.readline(LONGEST_LINE)
                    if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                        return
                    if line.strip():
                        yield self._parse(line, number)

    def _parse(self, line, number):
        try:
            record = parse_json(line)
            if all(is_of(record[name], types) for name, types in self._types.items()) and isinstance(record, dict):
                return record
        except (ValueError, KeyError, TypeError, IndexError):
            pass
        raise UnusableError(f"{self.path}: line {number} is not a record; remove the line, or give another --workdir")

    def keep(self, wanted):
        """Drops the records for which `wanted(record)` is false, and a half-written last line, by one rename."""
        kept = [json.dumps(record) + "\n" for record in self._records() if wanted(record)]
        with unusable(self.path):
            replace_file(self.path, "".join(kept))
