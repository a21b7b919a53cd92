"""The most confident mistakes of a judgement: the examples that the network got wrong and was most certain of."""

from typing import NamedTuple

import numpy as np

KEPT = 8  # as many as figure 4 of the paper shows
SHOWN_CLASSES = 5


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
