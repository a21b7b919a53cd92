"""Rows of a comparison: runs that differ only by their seed; and what can be said about them and their differences."""

import collections
import dataclasses
import math
import statistics

import numpy as np
from scipy import special

from train_lib.modes.compare.runs import BEHIND, OF_THE_DATA

MOST_POINTS = 200  # of a curve


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean of `n` values, with standard deviation (n - 1) and the 95 % interval of the mean; these are None if n is 1."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def summarize(values):
    """The Summary of a list of numbers, with the interval by Student's t; None if there is no number."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Summary(n, mean)
    sd = statistics.stdev(values)
    half = float(special.stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def count_statuses(runs):
    """How many of the runs have which status, as a text."""
    return ", ".join(f"{count} {status}" for status, count in collections.Counter(run.status for run in runs).items())


class Row:
    """Runs that differ only by their seed. `cells` is {column: text} of what differs between the rows.

    All figures are of the finished runs. Several runs of one seed are no independent sample, so their mean counts once.
    """

    def __init__(self, runs, cells=None):
        self.runs, self.cells, self.number = runs, cells or {}, None
        self.finished = [run for run in runs if run.is_finished]
        self.status = count_statuses(runs)

    def values(self, name):
        """{seed: the figure `name`} of the finished runs."""
        found = {}
        for run in self.finished:
            if run.figures[name] is not None:
                found.setdefault(run.seed, []).append(run.figures[name])
        return {seed: statistics.fmean(found[seed]) for seed in sorted(found)}

    def summary(self, name):
        """The Summary of the figure `name` over the seeds; None if no finished run has it."""
        return summarize(list(self.values(name).values()))

    @property
    def seeds(self):
        """The seeds that have finished."""
        return sorted({run.seed for run in self.finished})

    def curve(self, name):
        """(epochs, mean, lowest, highest) of `validation` or `training`; None if it has no records.

        Of the finished runs, or of all if none has finished; as far as all of them go.
        """
        curves = [getattr(run, name) for run in self.finished or self.runs if len(getattr(run, name)[0])]
        if not curves:
            return None
        first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        epochs = np.unique(np.concatenate([x for x, _ in curves]))
        epochs = epochs[(first <= epochs) & (epochs <= last)]
        epochs = epochs[np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_POINTS)).round().astype(int)]
        values = np.array([np.interp(epochs, *curve) for curve in curves])
        return (epochs, values.mean(0), values.min(0), values.max(0)) if len(epochs) else None


def difference(row, other, name):
    """The Summary of `row` minus `other` in the figure `name`, paired over the seeds of both; None for fewer than two."""
    values, others = row.values(name), other.values(name)
    shared = values.keys() & others.keys()
    return summarize([values[seed] - others[seed] for seed in sorted(shared)]) if len(shared) > 1 else None


@dataclasses.dataclass(frozen=True)
class Group:
    """Comparable rows, the best first.

    `data` is {what: text} of what makes their data differ from those of other groups. `columns` are the cells in which the rows
    differ, `common` are those in which they are equal, but other groups are not. Other rows are compared with `best`, the best of
    several seeds (None without one), and with `first`, the row of the first run.
    """

    data: dict
    common: dict
    columns: list
    rows: list
    best: Row | None
    first: Row


def compare(runs):
    """Returns the Groups of the runs, the largest first."""
    known = {(_flags(run), name): text for run in runs for name, text in run.data.items() if text}
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    columns = [name for name in names if len({run.settings.get(name, "-") for run in runs}) > 1]
    groups = {}
    for run in runs:
        # A run that has no checkpoint yet does not say what is behind the names of its data.
        data = tuple((name, text or known.get((_flags(run), name), "")) for name, text in run.data.items())
        cells = tuple((name, run.settings.get(name, "-")) for name in columns)
        groups.setdefault(data, {}).setdefault(cells, []).append(run)
    differing = {name for parts in zip(*groups, strict=True) if len(set(parts)) > 1 for name, _ in parts}
    differing = [name for name in runs[0].data if name in differing and name.removesuffix(BEHIND) not in differing - {name}]
    found, number = [], 0
    for data, rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        given = [Row(members, dict(cells)) for cells, members in rows.items()]
        ordered = sorted(given, key=_quality, reverse=True)
        for number, row in enumerate(ordered, number + 1):  # noqa: B020
            row.number = number
        best = next((row for row in ordered if len(row.seeds) > 1), None)
        shared = set.intersection(*(set(row.cells.items()) for row in ordered))
        named = {name: dict(data)[name] or "unknown" for name in differing}
        common = {name: text for name, text in given[0].cells.items() if (name, text) in shared and name not in named}
        inside = [name for name in given[0].cells if name not in dict(shared)]
        found.append(Group(named, common, inside, ordered, best, given[0]))
    return found


def _flags(run):
    return tuple(run.data[name] for name in OF_THE_DATA)


def _quality(row):
    """By the validation accuracy: to choose by the test accuracy would make that of the chosen row look too good."""
    summaries = [row.summary(name) for name in ("best_validation_accuracy", "test_accuracy")]
    return [-math.inf if summary is None else summary.mean for summary in summaries]
