"""Numbers about a run: means over training steps, exact judgement of a split, and the files they are kept in."""

import dataclasses
import json
import pathlib

import numpy as np


@dataclasses.dataclass
class TrainTotals:
    """Sums over the steps of the train record under way, in Python floats: their order never depends on the host calls."""

    steps: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    skipped_steps: int = 0

    def add(self, losses, accuracies, finite):
        """Adds consecutive steps: arrays of one value a step. Skipped steps are counted and leave the means alone."""
        for loss, accuracy, is_finite in zip(losses.tolist(), accuracies.tolist(), finite.tolist(), strict=True):
            if is_finite:
                self.steps += 1
                self.loss += loss
                self.accuracy += accuracy
            else:
                self.skipped_steps += 1

    def means(self):
        """{"loss", "accuracy"} per step, None where every step was skipped, and "skipped_steps" where any was."""
        values = {name: getattr(self, name) / self.steps if self.steps else None for name in ("loss", "accuracy")}
        return values | ({"skipped_steps": self.skipped_steps} if self.skipped_steps else {})


class SplitTotals:
    """Judges logits, batch after batch, in float64 on the host; padding has weight 0 and counts nowhere."""

    def __init__(self, num_classes):
        self._loss = 0.0
        self._top_5 = 0
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # [true class, predicted class]

    def add(self, logits, labels, weights):
        """Adds a batch: logits [b, classes], labels int [b], weights [b] of 0 or 1."""
        real = weights > 0
        logits, labels = logits[real].astype(np.float64), labels[real]
        of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        highest = logits.max(axis=1, keepdims=True)
        log_sum = highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1))
        self._loss += float((log_sum - of_label).sum())
        self._top_5 += int(((logits > of_label[:, None]).sum(axis=1) < 5)[np.isfinite(log_sum)].sum())
        np.add.at(self.confusion, (labels, logits.argmax(axis=1)), 1)

    def summary(self):
        """{"examples", "loss" (mean cross-entropy, no smoothing), "accuracy", "top_5_accuracy"}."""
        examples = int(self.confusion.sum())
        return {
            "examples": examples,
            "loss": self._loss / examples,
            "accuracy": int(np.trace(self.confusion)) / examples,
            "top_5_accuracy": self._top_5 / examples,
        }

    def accuracy_per_class(self):
        """One accuracy a class, None for a class without example."""
        counts = self.confusion.sum(axis=1)
        right = np.diagonal(self.confusion)
        return [int(r) / int(n) if n else None for r, n in zip(right, counts, strict=True)]


class JsonLines:
    """A file of one JSON object a line, each flushed as it is written."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def append(self, record):
        """Adds one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self):
        """All complete records; a last line that a killed process left half-written is not one."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.strip()]

    def keep(self, wanted):
        """Drops the records for which `wanted(record)` is false, by one rename."""
        records = self.read()
        kept = [json.dumps(record) + "\n" for record in records if wanted(record)]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)
