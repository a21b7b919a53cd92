"""Makes the tables and curves of docs/results.md from the raw files in docs/results/, so that no figure is copied by hand.

    python docs/make_results.py            # after you added runs to docs/results/ and to docs/results/experiments.json

Each run is a folder with the `metrics.jsonl` and `result.json` that training wrote. `experiments.json` states which runs belong
together, and their command, commit and hardware. `tests/docs/test_results.py` makes the tables again and compares them with the
page. Rows, means and intervals are those of `--mode=compare`.
"""

import json
import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # not needed once the project is installed

from pages import filled  # noqa: E402

from train_lib.modes.compare import page as comparison  # noqa: E402
from train_lib.modes.compare import rows  # noqa: E402
from train_lib.modes.compare.runs import read_run  # noqa: E402
from train_lib.records import charts  # noqa: E402


class Experiment(rows.Row):
    """The runs of one command with different seeds, a row of a comparison.

    Args:
      name: its key in experiments.json.
      about: its value: title, command, commit, hardware, runs (folders), and `"trial": true` if it served to choose a recipe.
      folder: the folder docs/results.
    """

    def __init__(self, name, about, folder):
        super().__init__([read_run(folder / run, {"seed": int(run.rsplit("-", 1)[1])}) for run in about["runs"]])
        self.name, self.about = name, about

    def spread(self, name):
        """Mean and standard deviation of a figure as text, or only the value if there is just one run."""
        return comparison.spread(self.summary(name), name)


def read_experiments(folder=DOCS / "results"):
    """All published experiments: {name: Experiment}."""
    return {name: Experiment(name, about, folder)
            for name, about in json.loads((folder / "experiments.json").read_text()).items()}


def accuracy_table(experiments):
    """One row for each experiment that was evaluated on the test split."""
    lines = ["| what | test accuracy, % | best validation accuracy, % | runs | seconds | images/s | commit, hardware | command |",
             "|---|---|---|---|---|---|---|---|"]
    for experiment in experiments.values():
        about = experiment.about
        if not experiment.values("test_accuracy"):
            continue
        lines.append(" | ".join([
            f"| {about['title']}",
            experiment.spread("test_accuracy"),
            experiment.spread("best_validation_accuracy"),
            str(len(experiment.seeds)),
            experiment.spread("seconds"),
            experiment.spread("images_per_second"),
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
                experiment.spread("best_validation_accuracy"),
                str(len(experiment.seeds)),
                experiment.spread("seconds"),
                f"`{experiment.about['commit']}`",
                f"`{experiment.about['command']}` |"]))
    return "\n".join(lines)


def epochs_table(experiments, names, epochs=3):
    """Validation accuracy after each of the first epochs, with one row per run."""
    numbers = range(1, epochs + 1)
    lines = ["| what | seed | " + " | ".join(f"epoch {number}" for number in numbers) + " |", "|---" * (2 + epochs) + "|"]
    for name in names:
        for run in experiments[name].runs:
            cells = " | ".join(f"{accuracy:.4f}" for accuracy in run.validation[1][:epochs])
            lines.append(f"| {experiments[name].about['title']} | {run.seed} | {cells} |")
    return "\n".join(lines)


def difference_line(experiments, with_it, without_it):
    """A sentence about the difference in test error between two experiments."""
    rows_of = experiments[with_it], experiments[without_it]
    errors = [rows.summarize([1 - value for value in row.values("test_accuracy").values()]) for row in rows_of]
    found = rows.difference(*reversed(rows_of), "test_accuracy")  # of the errors: that of the accuracies with the other sign
    texts = [comparison.spread(error, "test_accuracy") for error in errors]
    return (f"Test error {texts[0]} % with, {texts[1]} % without: a difference of "
            f"**{100 * found.mean:+.2f} points, 95 % interval {comparison.interval(found, 'test_accuracy', '+')}** "
            f"({found.n} pairs of equal seed, Student's t).")


def parts(experiments):
    """All texts that the page takes from the raw files: {marker: text}."""
    return {
        "accuracy": accuracy_table(experiments),
        "trials": trials_table(experiments),
        "tutorial": epochs_table(experiments, ["tutorial", "tutorial_model_fit"]),
        "lrn": difference_line(experiments, "lrn_with", "lrn_without"),
    }


def one_run(experiment):
    """Lines with the training and validation accuracy of the first run."""
    path = DOCS / "results" / experiment.about["runs"][0] / "metrics.jsonl"
    train = [record for record in map(json.loads, path.read_text().splitlines()) if record["kind"] == "train"]
    epochs, accuracies = experiment.runs[0].validation
    return [("training", [record["epoch"] for record in train], [100 * record["accuracy"] for record in train]),
            ("validation", epochs, 100 * accuracies)]


def side_by_side(first, second, labels):
    """Lines with the validation accuracy of two experiments, each the mean over its runs."""
    curves = [experiment.curve("validation")[:2] for experiment in (first, second)]
    return [(label, epochs, 100 * accuracies) for label, (epochs, accuracies) in zip(labels, curves, strict=True)]


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
    print(f"{page}: {len(experiments)} experiments, {sum(len(e.runs) for e in experiments.values())} runs")


if __name__ == "__main__":
    main()
