"""The ladder of docs/ladder.md: its commands, and its tables and picture from the raw files in docs/results/ladder/.

    python docs/make_ladder.py commands    # prints the command of every row; each trains several seeds
    python docs/make_ladder.py             # after runs were added to docs/results/ladder/: fills the page, draws the picture

docs/results/ladder.json describes the rungs: each has the flags of the one before it and those that it changes. A row of the
other tables has the flags of a rung, by default the last but one, and those that it changes. `tests/docs/test_ladder.py` makes
the page again and compares.
"""

import json
import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # not needed once the project is installed

from matplotlib.figure import Figure  # noqa: E402
from pages import filled  # noqa: E402

from train_lib.modes.compare import page as comparison  # noqa: E402
from train_lib.modes.compare import rows  # noqa: E402
from train_lib.modes.compare.runs import read_run  # noqa: E402
from train_lib.records import charts  # noqa: E402

RESULTS = DOCS / "results"
GREY, BLUE = "#7a7a7a", "#2f7fd6"
IMAGES = 50_000  # training images of CIFAR-10


class Entry(rows.Row):
    """A row of the page: `flags` is its whole command line, {flag: value}, `changed` are those that it changes in its `base`.

    `base` is the Entry that it is compared with, None for the lowest rung.
    """

    def __init__(self, name, about, flags, base=None):
        self.name, self.title, self.changed, self.base = name, about["title"], about["flags"], base
        self.flags, self.about = flags | self.changed, about
        self.folder = RESULTS / about.get("folder", f"ladder/{name}")
        found = sorted(self.folder.glob("seed-*"), key=lambda path: int(path.name[5:]))
        super().__init__([read_run(path, {"seed": int(path.name[5:])}) for path in found])

    @property
    def command(self):
        """The command, without --data_dir, --workdir and --seed."""
        return "python main.py " + " ".join(f"--{name}={value}" for name, value in self.flags.items())

    @property
    def accuracy(self):
        """Mean and standard deviation of the test accuracy as text."""
        found = self.summary("test_accuracy")
        return comparison.spread(found, "test_accuracy") if found else "not measured yet"

    @property
    def gain(self):
        """The Summary of the difference in test accuracy to `base`, paired over seeds; None if there is none."""
        return rows.difference(self, self.base, "test_accuracy") if self.base else None


def read_ladder(path=RESULTS / "ladder.json"):
    """{part of the page: [Entry]}: "rungs" from the bottom up, and the other tables."""
    described, rungs, flags = json.loads(path.read_text()), [], {}
    for name, about in described.pop("rungs").items():
        flags = {key: value for key, value in flags.items() if key not in about.get("without", ())}
        rungs.append(Entry(name, about, flags, rungs[-1] if rungs else None))
        flags = rungs[-1].flags
    bases = {rung.name: (rung.flags, rung) for rung in rungs} | {None: ({"preset": "cifar10_94", "epochs": 4}, rungs[-2])}
    return {"rungs": rungs} | {
        part: [Entry(name, about, *bases[about.get("base")]) for name, about in entries.items()]
        for part, entries in described.items()}


def changed_flags(entry):
    """The flags that an entry changes, as Markdown."""
    words = [f"`--{name}={value}`" for name, value in entry.changed.items()]
    return " ".join(words + [f"without `--{name}`" for name in entry.about.get("without", ())])


def rungs_table(rungs):
    """One row per rung, with the gain over the one below."""
    lines = ["| rung | what changes | flags | test accuracy, % | gain, points (95 % interval) | seeds |",
             "|---|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {number} | {_cells(rung)}" for number, rung in enumerate(rungs, start=1)])


def differences_table(heading, entries):
    """One row per entry with its difference to its base, the greatest loss first."""
    lines = [f"| {heading} | flags | test accuracy, % | difference, points (95 % interval) | seeds |", "|---|---|---|---|---|"]
    entries = sorted(entries, key=lambda entry: entry.gain.mean if entry.gain else 1.0)
    return "\n".join(lines + [f"| {_cells(entry)}" for entry in entries])


def trials_table(folder=RESULTS / "ladder_trials"):
    """One row per learning rate that was tried for a rung: one seed, evaluated on training images that it did not train on."""
    lines = ["| rung | learning rate | epochs | accuracy on `train[45000:]`, % |", "|---|---|---|---|"]
    for path in sorted(folder.glob("*/seed-*"), key=lambda path: (path.parent.name.split("-")[0], path.parent.name)):
        values, result = (json.loads((path / name).read_text()) for name in ("config.json", "result.json"))
        rung = path.parent.name.split("-")[0]
        lines.append(f"| {rung} | {values['learning_rate']:g} | {values['epochs']:g} | {100 * result['test_accuracy']:.2f} |")
    return "\n".join(lines)


def _cells(entry):
    """The cells that both tables have."""
    gain = f"{100 * entry.gain.mean:+.2f} ({comparison.interval(entry.gain, 'test_accuracy', '+')})" if entry.gain else ""
    return f"{entry.title} | {changed_flags(entry)} | {entry.accuracy} | {gain} | {len(entry.seeds)} |"


def picture(rungs):
    """The ladder as a Figure: a bar from rung to rung, a point for each seed. Legible on white and on black."""
    with charts.our_style():
        figure = Figure(figsize=(9, 0.36 * len(rungs) + 0.9), layout="constrained")
        axes = figure.subplots()
        below = None
        for place, rung in enumerate(rungs):
            values = [100 * value for value in rung.values("test_accuracy").values()]
            mean = sum(values) / len(values)
            axes.barh(place, mean - (below or mean), 0.5, left=below or mean, color=BLUE, alpha=0.5)
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=4)
            axes.annotate(f"{mean:.1f}", (max(values), place), xytext=(8, 0), textcoords="offset points", va="center", color=GREY)
            below = mean
        axes.set_yticks(range(len(rungs)), [rung.title for rung in rungs], color=GREY)
        axes.set_xlabel("test accuracy on CIFAR-10, %", color=GREY)
        axes.tick_params(colors=GREY)
        axes.grid(axis="x", color=GREY, alpha=0.25)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
    return figure


def parts(ladder):
    """All texts that the page takes from the raw files: {marker: text}."""
    headings = {"removals": "without", "additions": "with", "lrn": "response normalization in"}
    return {"rungs": rungs_table(ladder["rungs"]), "trials": trials_table()} | {
        part: differences_table(heading, ladder[part]) for part, heading in headings.items()}


def commands(ladder):
    """One line per row: the sweep over seeds that trains it."""
    sweep = "python main.py --mode=sweep --sweep=seed=0:3 --workdir=runs/ladder/"
    return [entry.command.replace("python main.py", sweep + entry.name) for entries in ladder.values() for entry in entries]


def main(arguments):
    """Prints the commands, or updates the page and the picture."""
    ladder = read_ladder()
    if arguments == ["commands"]:
        print("\n".join(commands(ladder)))
        return
    page = DOCS / "ladder.md"
    page.write_text(filled(page, parts(ladder)))
    (DOCS / "ladder.png").write_bytes(charts.to_png(picture([rung for rung in ladder["rungs"] if rung.runs])))
    print(f"{page}: {sum(len(entry.runs) for entries in ladder.values() for entry in entries)} runs")


if __name__ == "__main__":
    main(sys.argv[1:])
