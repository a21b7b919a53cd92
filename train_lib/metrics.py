"""Numbers about a run: means over training steps, exact judgement of a split, and the files they are kept in."""

import contextlib
import dataclasses
import errno
import itertools
import json
import math
import os
import pathlib

import numpy as np

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import parse_json, replace_file, unusable

LONGEST_LINE = 2**16  # bytes; a record has about 300


@dataclasses.dataclass
class TrainTotals:
    """Sums over the steps of the train record under way, in Python floats: their order never depends on the host calls."""

    steps: int = 0
    sums: dict = dataclasses.field(default_factory=lambda: {"loss": 0.0, "accuracy": 0.0})
    skipped_steps: int = 0

    def add(self, metrics, finite):
        """Adds consecutive steps: arrays of one value a step. Skipped steps are counted and leave the means alone.

        Args:
          metrics: {name: array}.
          finite: bool, whether the step was done.
        """
        for name, values in metrics.items():
            self.sums.setdefault(name, 0.0)
            for value in values[finite].tolist():  # not sum(): from Python 3.12 on it depends on where the steps are cut
                self.sums[name] += value
        self.steps += int(finite.sum())
        self.skipped_steps += int((~finite).sum())

    def means(self):
        """{metric: mean over the steps}, None where every step was skipped, and "skipped_steps" where any was."""
        values = {name: total / self.steps if self.steps else None for name, total in self.sums.items()}
        return values | ({"skipped_steps": self.skipped_steps} if self.skipped_steps else {})


class SplitTotals:
    """Judges logits, batch after batch, in float64 on the host; padding has weight 0 and counts nowhere.

    Logits with a NaN or +infinity predict no class: their example is judged wrong and stands nowhere in `confusion`.
    """

    def __init__(self, num_classes):
        self._loss = 0.0
        self._top_5 = 0
        self._examples_per_class = np.zeros(num_classes, np.int64)
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # [true class, predicted class]

    def add(self, logits, labels, weights):
        """Adds a batch: logits [b, classes], labels int [b], weights [b] of 0 or 1."""
        real = weights > 0
        logits, labels = logits[real].astype(np.float64), labels[real]
        of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        highest = logits.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinity - infinity is the NaN that it should be
            log_sum = np.log(np.exp(logits - highest).sum(axis=1))  # less `highest`
            self._loss += float((log_sum + (highest[:, 0] - of_label)).sum())
        predicts = np.isfinite(log_sum)
        self._top_5 += int(((logits > of_label[:, None]).sum(axis=1) < 5)[predicts].sum())
        np.add.at(self._examples_per_class, labels, 1)
        np.add.at(self.confusion, (labels[predicts], logits[predicts].argmax(axis=1)), 1)

    def add_up(self, add):
        """Replaces every total by its sum over several judges: `add` takes a list of numbers and returns the sums, in order."""
        counts = self._examples_per_class
        self._loss, self._top_5, *sums = add([self._loss, self._top_5, *counts.tolist(), *self.confusion.ravel().tolist()])
        self._examples_per_class = np.array(sums[: len(counts)], np.int64)
        self.confusion = np.array(sums[len(counts) :], np.int64).reshape(self.confusion.shape)

    def summary(self):
        """{"examples", "loss" (mean cross-entropy, no smoothing), "accuracy", "top_5_accuracy"}."""
        examples = int(self._examples_per_class.sum())
        return {
            "examples": examples,
            "loss": self._loss / examples,
            "accuracy": int(np.trace(self.confusion)) / examples,
            "top_5_accuracy": self._top_5 / examples,
        }

    def accuracy_per_class(self):
        """One accuracy a class, None for a class without example."""
        right = np.diagonal(self.confusion)
        return [int(r) / int(n) if n else None for r, n in zip(right, self._examples_per_class, strict=True)]


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


def is_of(value, types):
    """Whether a JSON value is of one of the types. true and false are no numbers, nor is what no float or int64 can hold."""
    return isinstance(value, types) and not isinstance(value, bool) and (not isinstance(value, int) or abs(value) < 2**63)
