"""Makes the tables and curves of docs/results.md from the raw files in docs/results/, so that no figure is copied by hand.

    python docs/make_results.py            # after you added runs to docs/results/ and to docs/results/experiments.json

Each run is a folder with the `metrics.jsonl` and `result.json` that training wrote. `experiments.json` states which runs belong
together, and their command, commit and hardware. `tests/docs/test_results.py` makes the tables again and compares them with the
page.
"""

import json
import math
import pathlib
import statistics
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # not needed once the project is installed

from pages import filled  # noqa: E402

from train_lib.records import charts  # noqa: E402

# Student's t at 97.5 %, by degrees of freedom. A 95 % interval of the mean of n differences has n - 1 degrees of freedom.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


class Experiment:
    """The runs of one command with different seeds.

    Args:
      name: its key in experiments.json.
      about: its value: title, command, commit, hardware, runs (folders), and `"trial": true` if it served to choose a recipe.
      folder: the folder docs/results.
    """

    def __init__(self, name, about, folder):
        self.name, self.about = name, about
        self.results = [json.loads((folder / run / "result.json").read_text()) for run in about["runs"]]
        self.metrics = [read_lines(folder / run / "metrics.jsonl") for run in about["runs"]]

    def values(self, name):
        """The value `name` in the result.json of each run."""
        return [result[name] for result in self.results]

    def validation(self, run):
        """(epochs, accuracies) of one run."""
        records = [record for record in self.metrics[run] if record["kind"] == "validation"]
        return [record["epoch"] for record in records], [record["accuracy"] for record in records]


def read_lines(path):
    """The records of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_experiments(folder=DOCS / "results"):
    """All published experiments: {name: Experiment}."""
    return {name: Experiment(name, about, folder)
            for name, about in json.loads((folder / "experiments.json").read_text()).items()}


def spread(values, factor=1.0, digits=2):
    """Mean and standard deviation (n - 1) as text, or only the value if there is just one."""
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def accuracy_table(experiments):
    """One row for each experiment that was evaluated on the test split."""
    lines = ["| what | test accuracy, % | best validation accuracy, % | runs | seconds | images/s | commit, hardware | command |",
             "|---|---|---|---|---|---|---|---|"]
    for experiment in experiments.values():
        about = experiment.about
        if None in experiment.values("test_accuracy"):
            continue
        lines.append(" | ".join([
            f"| {about['title']}",
            spread(experiment.values("test_accuracy"), 100),
            spread(experiment.values("best_validation_accuracy"), 100),
            str(len(experiment.results)),
            spread(experiment.values("seconds"), digits=0),
            spread(experiment.values("images_per_second"), digits=0),
            f"`{about['commit']}`, {about['hardware']}",
            f"`{about['command']}` |"]))
    return "\n".join(lines)


def trials_table(experiments):
    """One row for each trial: trials chose the recipes, and were only evaluated on a slice of the training images."""
    lines = ["| trial | best validation accuracy, % | runs | seconds | commit | command |", "|---|---|---|---|---|---|"]
    for experiment in experiments.values():
        if experiment.about.get("trial"):
            lines.append(" | ".join([
                f"| {experiment.about['title']}",
                spread(experiment.values("best_validation_accuracy"), 100),
                str(len(experiment.results)),
                spread(experiment.values("seconds"), digits=0),
                f"`{experiment.about['commit']}`",
                f"`{experiment.about['command']}` |"]))
    return "\n".join(lines)


def epochs_table(experiments, names, epochs=3):
    """Validation accuracy after each of the first epochs, with one row per run."""
    numbers = range(1, epochs + 1)
    lines = ["| what | seed | " + " | ".join(f"epoch {number}" for number in numbers) + " |", "|---" * (2 + epochs) + "|"]
    for name in names:
        for run, folder in enumerate(experiments[name].about["runs"]):
            _, accuracies = experiments[name].validation(run)
            cells = " | ".join(f"{accuracy:.4f}" for accuracy in accuracies[:epochs])
            lines.append(f"| {experiments[name].about['title']} | {folder.rsplit('-', 1)[1]} | {cells} |")
    return "\n".join(lines)


def difference(with_it, without_it):
    """Mean of the paired differences, and half the width of its 95 % interval by Student's t."""
    differences = [a - b for a, b in zip(with_it, without_it, strict=True)]
    half = T_975[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), half


def difference_line(experiments, with_it, without_it):
    """A sentence about the difference in test error between two experiments."""
    errors = [[1 - value for value in experiments[name].values("test_accuracy")] for name in (with_it, without_it)]
    mean, half = difference(*errors)
    return (f"Test error {spread(errors[0], 100)} % with, {spread(errors[1], 100)} % without: a difference of "
            f"**{100 * mean:+.2f} points, 95 % interval {100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}** "
            f"({len(errors[0])} pairs of equal seed, Student's t).")


def parts(experiments):
    """All texts that the page takes from the raw files: {marker: text}."""
    return {
        "accuracy": accuracy_table(experiments),
        "trials": trials_table(experiments),
        "tutorial": epochs_table(experiments, ["tutorial", "tutorial_model_fit"]),
        "lrn": difference_line(experiments, "lrn_with", "lrn_without"),
    }


def mean_validation(experiment):
    """(epochs, accuracies in %): validation accuracy, mean over the runs."""
    epochs, _ = experiment.validation(0)
    runs = [experiment.validation(run)[1] for run in range(len(experiment.metrics))]
    return epochs, [100 * statistics.fmean(at_one_epoch) for at_one_epoch in zip(*runs, strict=True)]


def one_run(experiment):
    """Lines with the training and validation accuracy of the first run."""
    train = [record for record in experiment.metrics[0] if record["kind"] == "train"]
    epochs, accuracies = experiment.validation(0)
    return [("training", [record["epoch"] for record in train], [100 * record["accuracy"] for record in train]),
            ("validation", epochs, [100 * accuracy for accuracy in accuracies])]


def side_by_side(first, second, labels):
    """Lines with the validation accuracy of two experiments."""
    return [(label, *mean_validation(experiment)) for label, experiment in zip(labels, (first, second), strict=True)]


def pictures(experiments):
    """All learning curves on the page: {file name: lines of the figure}."""
    return {
        **{f"{name}.png": one_run(experiments[name]) for name in ("cifar10", "cifar10_fast")},
        "tutorial.png": side_by_side(experiments["tutorial"], experiments["tutorial_model_fit"], ("this loop", "model.fit")),
        "lrn.png": side_by_side(experiments["lrn_with"], experiments["lrn_without"], ("with", "without")),
    }


def main():
    """Updates the page and draws the pictures."""
    experiments = read_experiments()
    page = DOCS / "results.md"
    page.write_text(filled(page, parts(experiments)))
    for name, series in pictures(experiments).items():
        (DOCS / "results" / name).write_bytes(charts.to_png(charts.curves(series, "accuracy, %")))
    print(f"{page}: {len(experiments)} experiments, {sum(len(e.results) for e in experiments.values())} runs")


if __name__ == "__main__":
    main()
