"""Numbers about a run: means over training steps, exact judgement of a split, and the files they are kept in."""

import contextlib
import dataclasses
import json
import math
import pathlib

import numpy as np

from input_pipeline.errors import UnusableError


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


class JsonLines:
    """A file of one JSON object a line, each flushed as it is written. A NaN or infinity, which JSON has not, becomes null.

    Args:
      path: the file; it need not be there yet.
      names: what every record holds.

    Every method raises UnusableError where the file cannot be read or written, or holds a line that is no such record.
    """

    def __init__(self, path, names=()):
        self.path = pathlib.Path(path)
        self._names = set(names)

    def append(self, record):
        """Adds one record."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with _naming(self.path, "written"), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def read(self):
        """All complete records; a last line that a killed process left half-written is not one."""
        with _naming(self.path, "read"):
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [self._parse(line, number) for number, line in enumerate(lines, 1) if line.strip()]

    def _parse(self, line, number):
        try:
            record = json.loads(line)
            if self._names <= record.keys():
                return record
        except (ValueError, AttributeError, RecursionError):
            pass
        raise UnusableError(f"{self.path}: line {number} is not a record; remove the line, or give another --workdir")

    def keep(self, wanted):
        """Drops the records for which `wanted(record)` is false, and a half-written last line, by one rename."""
        kept = [json.dumps(record) + "\n" for record in self.read() if wanted(record)]
        temporary = self.path.with_name(self.path.name + ".tmp")
        with _naming(self.path, "written"):
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self.path)


@contextlib.contextmanager
def _naming(path, verb):
    """Turns an OSError into the one line that names the file."""
    try:
        yield
    except OSError as error:
        remedy = "make room or mend its permissions, and start the same command again"
        raise UnusableError(f"{path}: cannot be {verb} ({error.strerror}); {remedy}") from None
