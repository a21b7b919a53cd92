"""The classes of examples whose labels are whole numbers, and what is wrong with labels that do not count them from 0."""

import collections
import itertools

from input_pipeline.common.errors import UnusableError
from input_pipeline.sources.base import WITHOUT_SPLITS

_MOST_PARTS = 5  # of a list of labels in a message


def numbered_classes(labels):
    """The names 0, 1, ... of classes, given only the labels, up to the first whole number that is not a label.

    A gap would be a class without examples, so a label beyond it is more likely a mistake than a class.
    """
    labels = set(labels)
    return tuple(map(str, itertools.takewhile(labels.__contains__, itertools.count())))


def check_labels(place, labels, num_classes, remedy):
    """Decides whether labels outside of 0 ... num_classes - 1 are single mistakes or a fault of the whole source.

    `labels` are {name of a split: iterable of its labels}, `place` is the file or pattern and `remedy` what to do besides
    renumbering them. Fewer such examples than classes are single mistakes: the caller notes each of them as a bad example. More
    of them mean that the labels count from 1, have a gap or are missing, and skipping them would leave out whole classes.
    Then raises UnusableError if the training split has such labels, or returns {split: reason} for `Source.faults` if only other
    splits have them, such as a test split that was published without labels.
    """
    counts = {split: collections.Counter(part) for split, part in labels.items()}
    outside = {split: sum(count for label, count in part.items() if not 0 <= label < num_classes)
               for split, part in counts.items()}
    if not any(outside.values()) or sum(outside.values()) < num_classes:
        return {}
    if outside.get(WITHOUT_SPLITS, 1):  # without a split `train`, nobody knows which split is trained on
        raise UnusableError(f"{place}: {_wrong_labels(set().union(*counts.values()), remedy)}")
    return {split: f"{place}: {split} {_wrong_labels(set(counts[split]), remedy)}" for split in outside if outside[split]}


def _wrong_labels(labels, remedy):
    unlabelled = "remove the examples without a label (negative numbers), " if min(labels) < 0 else ""
    wrong = f"has the {short_list(labels)}; labels must count the classes from 0 without a gap"
    return f"{wrong}: {unlabelled}renumber them, or {remedy}"


def short_list(labels):
    """Distinct labels as a short text, such as "labels 0 to 3 and 5 to 9"; leaves out the middle of a long list."""
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(labels)), lambda numbered: numbered[1] - numbered[0]):
        run = [label for _, label in run]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    if len(parts) > _MOST_PARTS:
        parts[_MOST_PARTS - 1 : -1] = ["..."]
    *most, last = parts
    return f"label{'s' if len(labels) > 1 else ''} {', '.join(most)}{' and ' if most else ''}{last}"
