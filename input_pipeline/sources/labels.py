"""The classes of examples whose labels are whole numbers without names."""

import itertools


def numbered_classes(labels):
    """The names 0, 1, ... of classes, given only the labels, up to the first whole number that is not a label.

    A gap would be a class without examples, so a label beyond it is more likely a mistake than a class.
    """
    labels = set(labels)
    return tuple(map(str, itertools.takewhile(labels.__contains__, itertools.count())))
