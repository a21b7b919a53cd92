"""Numbers about a run: the metrics of a train record, the exact evaluation of a split, and the most confident mistakes."""

import dataclasses
from typing import NamedTuple

import numpy as np

KEPT = 8  # mistakes, as many as figure 4 of the paper shows
SHOWN_CLASSES = 5

# {how the steps of a train record are reduced: (adds the value of one more step, computes the metric)}.
REDUCTIONS = {
    "mean": (lambda total, value: total + value, lambda total, steps: total / steps),
    "sum": (lambda total, value: total + value, lambda total, steps: total),
    "max": (max, lambda total, steps: total),
    "last": (lambda total, value: value, lambda total, steps: total),
}


@dataclasses.dataclass
class TrainTotals:
    """The train record that is being collected. It is part of a checkpoint, so that a resumed run completes the same record.

    Python floats are added one step at a time, so that the result does not depend on how many steps a call does.
    """

    steps: int = 0  # how many steps were made
    sums: dict = dataclasses.field(default_factory=lambda: {"loss": 0.0, "accuracy": 0.0})  # {metric: its reduction so far}
    skipped_steps: int = 0

    def add(self, metrics, finite, reductions=None):
        """Adds consecutive steps, {name: array of one value per step}, to their `reductions`, {name: one of REDUCTIONS}.

        The reduction is "mean" for a name that is missing. Where `finite`, a bool array, is False, the step was skipped: it is
        counted and otherwise left out.
        """
        for name, values in metrics.items():
            if self.steps and name not in self.sums:  # the record began before the code had this metric
                continue
            reduction = (reductions or {}).get(name, "mean")
            accumulate = REDUCTIONS[reduction][0]
            for index, value in enumerate(values[finite].tolist()):  # sum() would depend on how the steps are cut
                is_first = self.steps + index == 0 and reduction in ("max", "last")
                self.sums[name] = value if is_first else accumulate(self.sums.get(name, 0.0), value)
            self.sums.setdefault(name, 0.0)
        self.steps += int(finite.sum())
        self.skipped_steps += int((~finite).sum())

    def values(self, reductions=None):
        """{metric: value} of the record; None if every step was skipped. Adds "skipped_steps" if any was.

        `reductions` is as in `add`; a function in it gets the other metrics and returns its own.
        """
        reductions = reductions or {}
        values = {}
        for name, total in self.sums.items():
            values[name] = REDUCTIONS[reductions.get(name, "mean")][1](total, self.steps) if self.steps else None
        for name, function in reductions.items():
            if callable(function):
                values[name] = function(values) if self.steps else None
        return values | ({"skipped_steps": self.skipped_steps} if self.skipped_steps else {})


class SplitTotals:
    """Evaluates logits, batch after batch, in float64 on the host. Padding has weight 0 and counts nowhere.

    Logits with a NaN or +infinity predict no class: their example counts as wrong and does not appear in `confusion`.
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
        with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, which is what we want
            log_sum = np.log(np.exp(logits - highest).sum(axis=1))  # of exp(logits - highest)
            self._loss += float((log_sum + (highest[:, 0] - of_label)).sum())
        predicts = np.isfinite(log_sum)
        self._top_5 += int(((logits > of_label[:, None]).sum(axis=1) < 5)[predicts].sum())
        np.add.at(self._examples_per_class, labels, 1)
        np.add.at(self.confusion, (labels[predicts], logits[predicts].argmax(axis=1)), 1)

    def add_up(self, add):
        """Replaces every total by its sum over several workers: `add` takes a list of numbers and returns their sums in order."""
        counts = self._examples_per_class
        self._loss, self._top_5, *sums = add([self._loss, self._top_5, *counts.tolist(), *self.confusion.ravel().tolist()])
        self._examples_per_class = np.array(sums[: len(counts)], np.int64)
        self.confusion = np.array(sums[len(counts) :], np.int64).reshape(self.confusion.shape)

    def summary(self):
        """{"examples", "loss" (mean cross-entropy without label smoothing), "accuracy", "top_5_accuracy"}."""
        examples = int(self._examples_per_class.sum())
        return {
            "examples": examples,
            "loss": self._loss / examples,
            "accuracy": int(np.trace(self.confusion)) / examples,
            "top_5_accuracy": self._top_5 / examples,
        }

    def accuracy_per_class(self):
        """A list with the accuracy of each class; None for a class without examples."""
        right = np.diagonal(self.confusion)
        return [int(r) / int(n) if n else None for r, n in zip(right, self._examples_per_class, strict=True)]


class Mistake(NamedTuple):
    """An example that the network took for another class."""

    image: np.ndarray  # uint8 [height, width, 3], as the network saw it
    label: int  # its class
    classes: np.ndarray  # the five most probable classes (or all, if there are fewer), the predicted one first
    probabilities: np.ndarray  # float64, of these classes


class Mistakes:
    """Collects the most confident mistakes over the batches of an evaluation. `worst` holds them, the worst first."""

    def __init__(self):
        self.worst = []

    def add(self, logits, labels, weights, images):
        """Looks at a batch: logits [b, classes], labels int [b], weights [b] of 0 (padding) or 1.

        `images` is a function that returns uint8 [b, height, width, 3]. It is only called if an example of the batch is kept,
        since the images may have to be copied back from a GPU. Logits with a NaN or +infinity predict no class: no mistake.
        """
        logits = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, which is what we want
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidence = 1 / exponentials.sum(axis=1)
        least = self.worst[-1].probabilities[0] if len(self.worst) == KEPT else 0.0
        wrong = (weights > 0) & (logits.argmax(axis=1) != labels) & (confidence > least)
        rows = np.flatnonzero(wrong)
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:KEPT]
        if not rows.size:
            return
        shown = images()
        for row in rows:
            classes = np.argsort(-logits[row], kind="stable")[:SHOWN_CLASSES]
            probabilities = exponentials[row, classes] * confidence[row]
            self.worst.append(Mistake(shown[row].copy(), int(labels[row]), classes, probabilities))
        self.worst = sorted(self.worst, key=lambda mistake: -mistake.probabilities[0])[:KEPT]
