"""Numbers about a run: means over training steps, exact judgement of a split, and the files they are kept in."""

import dataclasses
from typing import NamedTuple

import numpy as np

KEPT = 8  # as many as figure 4 of the paper shows
SHOWN_CLASSES = 5


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


class Mistake(NamedTuple):
    """An example that was taken for another class.

    Attributes:
      image: uint8 [height, width, 3], as the evaluation gave it to the network.
      label: its class.
      classes: the five most probable classes (or all, where there are fewer), the predicted one first.
      probabilities: float64, theirs.
    """

    image: np.ndarray
    label: int
    classes: np.ndarray
    probabilities: np.ndarray


class Mistakes:
    """Collects Mistakes over the batches of a judgement; `worst` are the most confident so far, the worst first."""

    def __init__(self):
        self.worst = []

    def add(self, logits, labels, weights, images):
        """Looks at a batch. Logits with a NaN or +infinity predict no class and are no confident mistake.

        Args:
          logits: [b, classes].
          labels: int [b].
          weights: [b] of 0 or 1; padding has 0.
          images: returns uint8 [b, height, width, 3]; called only where an example of the batch is kept, since the images may
            have to come back from a GPU.
        """
        logits = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity - infinity is the NaN that it should be
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
