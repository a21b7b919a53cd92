"""The mode `report`: writes report.html, one page about a training run that is still going on or has ended.

It reads files of the workdir and nothing else. So it needs neither TensorFlow nor the data set, and it does not disturb the run.
The template turns `contents` into HTML and escapes all text.
"""

import base64
import bisect
import contextlib
import pathlib
import time

import jinja2
import numpy as np

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.cli.commands import main_command, quoted
from train_lib.records import charts, pages
from train_lib.records.json_lines import METRICS, METRICS_RECORD, TIMING_RECORD, JsonLines
from train_lib.records.run_files import STATUS, read_object
from train_lib.records.terminal import number, percent

REPORT = "report.html"
TEMPLATE = pathlib.Path(__file__).with_name(REPORT)
EVALUATION_NAMES = ("step", "split", "examples", "loss", "accuracy", "top_5_accuracy", "accuracy_per_class", "class_names",
                    "confusion_matrix")
MOST_POINTS = 400  # of a line in a chart; if there are more, neighbours are averaged
MOST_ROWS = 200  # of the table of epochs


def report(config, workdir):
    """Writes report.html and returns 0. Raises UnusableError if there is no record yet, or a file cannot be read or written."""
    files = RunFiles(workdir.path)
    try:
        page = pages.render(TEMPLATE, contents(files))
    except (TypeError, ValueError, LookupError, AttributeError, jinja2.UndefinedError) as error:  # somebody edited the files
        remedy = "look at the newest of them, or copy the folder without the edited files"
        raise UnusableError(f"{workdir.path}: a record or JSON file is not what a run writes ({error!r}); {remedy}") from None
    print(f"written: {workdir.write_file(REPORT, page)}")
    return 0


class RunFiles:
    """The contents of the files of a workdir. If a file does not exist, its attribute is {} or [].

    `values` are the settings in config.json. `evaluation` and `mistakes` are of the newest weights that `--mode=evaluate` or the
    run itself evaluated. `kernels` and `batch` are the first and the last picture, [(step, PNG file in base64)].
    Raises UnusableError if there is no record, or if a file does not contain what it should.
    """

    def __init__(self, path):
        self.path, self.read_at, self.has_flagfile = path, time.strftime("%Y-%m-%d %H:%M:%S %Z"), (path / "run.flags").exists()
        self.metrics = JsonLines(path / METRICS, METRICS_RECORD).read()
        if not self.metrics:
            remedy = "a run writes its first after --log_every_steps steps; wait for it, or give another folder"
            raise UnusableError(f"--workdir={path}: holds no run with a record; {remedy}")
        self.train, self.validation, self.test = (
            [record for record in self.metrics if record["kind"] == kind] for kind in ("train", "validation", "test"))
        self.timing = JsonLines(path / "timing.jsonl", TIMING_RECORD).read()
        folders = path, path / "pictures"
        evaluations = [(folder, read_object(folder / "evaluation.json", EVALUATION_NAMES)) for folder in folders]
        # If both are of one step, take the one the user asked for: `--mode=evaluate` writes into the workdir itself.
        folder, self.evaluation = max(evaluations, key=lambda found: found[1].get("step", -1))
        mistakes = read_object(folder / "mistakes.json")
        self.mistakes = mistakes.get("mistakes", []) if mistakes.get("step") == self.evaluation.get("step") else []
        self.values, self.result, self.environment = (
            read_object(path / f"{name}.json") for name in ("config", "result", "environment"))
        self.kernels, self.batch = (_first_and_last(path / "pictures", name) for name in ("kernels", "batch"))


def _first_and_last(folder, name):
    """The first and the last picture of a name; a run of a hundred evaluations leaves a hundred."""
    names = [path.stem.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*.png")]
    steps, shown = sorted(int(step) for step in names if config_lib.is_step(step)), []
    for step in sorted({*steps[:1], *steps[-1:]}):
        with contextlib.suppress(FileNotFoundError):  # a run that went back to a checkpoint has just removed it
            shown.append((step, base64.b64encode((folder / f"{name}-{step:08}.png").read_bytes()).decode()))
    return shown


def contents(files):
    """The variables of the template, {name: value}, from RunFiles. Charts are SVG text; everything else is plain text."""
    values, best = files.values, best_record(files)
    return {
        "title": f"{values.get('model', 'A network')} on {values.get('dataset', 'its data')}",
        "files": files,
        "status": status(files),
        "figures": figures(files, best),
        "curves": curves(files),
        "epochs": epochs(files, best),
        "classes": classes(files.evaluation) if files.evaluation else None,
        "speed": speed(files),
        "commands": commands(files),
        "settings": settings(values),
        "environment": {name.replace("_", " "): _text(name, value) for name, value in files.environment.items()},
    }


def best_record(files):
    """The validation record of the best step, None if there is none."""
    records = [record for record in files.validation if None not in (record.get("loss"), record.get("accuracy"))]
    if chosen := [record for record in records if record["step"] == files.result.get("best_step")]:
        return chosen[0]
    if files.values.get("early_stopping_monitor") == "validation_loss":
        return min(records, key=lambda record: record["loss"], default=None)
    return max(records, key=lambda record: record["accuracy"], default=None)


def status(files):
    """How far the run is, in one or two sentences."""
    result, last = files.result, max(files.metrics, key=lambda record: record["step"])
    of = f" of {files.values['epochs']:g}" if "epochs" in files.values else ""
    how = STATUS.get(result.get("status"), "No result yet: still running, or killed")
    return f"{how}. Step {result.get('steps', last['step']):,}, epoch {result.get('epochs', last['epoch']):.3g}{of}."


def figures(files, best):
    """The main figures of the run that are known: [(name, value, note)]."""
    test, newest = next(iter(files.test), None), files.train[-1] if files.train else {}
    train_seconds, images = (sum(record.get(name, 0) for record in files.timing) for name in ("train_seconds", "images"))
    seconds = files.result.get("seconds", sum(record["seconds"] for record in files.timing))
    found = [
        ("Test accuracy", test and percent(test["accuracy"]), test and f"top-5 {percent(test.get('top_5_accuracy'))}"),
        ("Best validation accuracy", best and percent(best["accuracy"]), best and f"step {best['step']:,}"),
        ("Newest training loss", number(newest.get("loss")), ""),
        ("Images per second", f"{images / train_seconds:,.0f}" if train_seconds else None, "of the training steps"),
        ("Time", duration(seconds) if seconds else None, "with evaluations and checkpoints"),
        ("Parameters", f"{files.environment['parameters']:,}" if "parameters" in files.environment else None, ""),
    ]
    return [figure for figure in found if figure[1]]


def duration(seconds):
    """Seconds as text, such as "1 h 02 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def curves(files):
    """Charts of loss, accuracy and learning rate over the epochs."""
    shown = []
    for name, unit in {"loss": "loss", "accuracy": "accuracy in %", "learning_rate": "learning rate"}.items():
        kinds = {"training": files.train, "validation": [] if name == "learning_rate" else files.validation}
        series = [(kind, *line(records, name)) for kind, records in kinds.items() if records]
        ends = ", ".join(f"{kind} ends at {y[-1]:.4g}" for kind, _, y in series if not np.isnan(y[-1]))
        shown.append(charts.to_svg(charts.curves(series, unit), name, f"{unit.capitalize()} over the epochs: {ends}"))
    return shown


def line(records, name):
    """The points of a line: (epochs, values), two float64 arrays of at most 400 points. None becomes NaN, a share per cent."""
    factor = 100 if name in ("accuracy", "data_wait_share") else 1
    x = np.array([record["epoch"] for record in records], float)
    y = factor * np.array([record.get(name) for record in records], float)
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MOST_POINTS)
    known = [group[~np.isnan(y[group])] for group in groups]
    return (np.array([x[group].mean() for group in groups]),
            np.array([y[group].mean() if group.size else np.nan for group in known]))


def epochs(files, best):
    """The table of epochs: {"rows": [(epoch, is_best, [the other cells])], "total": rows before the table was thinned}.

    It has one row for each evaluation. Without a validation split, it has one for each epoch.
    """
    rows, steps = files.validation, [record["step"] for record in files.train]
    if not rows:
        ends = {int(record["epoch"] - 1e-9): record for record in files.train}
        rows = [{"step": record["step"], "epoch": record["epoch"]} for record in ends.values()]
    kept = {round(place) for place in np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS))}
    shown = []
    for index, row in enumerate(rows):
        if index in kept or row is best:
            place = bisect.bisect_right(steps, row["step"])
            train = files.train[place - 1] if place else {}
            rate = train.get("learning_rate")
            shown.append((f"{row['epoch']:.3g}", row is best, [
                f"{row['step']:,}", number(train.get("loss")), percent(train.get("accuracy")), number(row.get("loss")),
                percent(row.get("accuracy")), percent(row.get("top_5_accuracy")), "-" if rate is None else f"{rate:.3g}"]))
    return {"rows": shown, "total": len(rows), "kept": len(kept)}


def classes(evaluation):
    """Of an evaluation: {"rows": [(class, accuracy or None)], worst first, "matrix": a chart, "confusions": a sentence}."""
    names, confusion = evaluation["class_names"], np.array(evaluation["confusion_matrix"])
    off = confusion - np.diag(np.diagonal(confusion))
    top = [divmod(int(place), len(names)) for place in np.argsort(-off, axis=None, kind="stable")[:5]]
    pairs = [f"{names[true]} for {names[taken]} ({off[true, taken]})" for true, taken in top if off[true, taken]]
    text = f"Most often mistaken: {', '.join(pairs)}." if pairs else "No class was mistaken for another."
    matrix = charts.confusion_matrix(names, confusion, inches=4.6 + 0.3 * max(0, min(len(names), 25) - 10))
    return {
        "rows": sorted(evaluation["accuracy_per_class"].items(), key=lambda pair: (pair[1] is None, pair[1])),
        "matrix": charts.to_svg(matrix, "confusion", f"Confusion matrix. {text}"),
        "confusions": text,
    }


def speed(files):
    """Charts of the throughput and of the share of time spent waiting for data; [] if there is no record of either."""
    per_step, shown = files.metrics[0]["epoch"] / max(files.metrics[0]["step"], 1), []
    records = [record | {"epoch": record["step"] * per_step} for record in files.timing]
    for name, unit in {"images_per_second": "images/s", "data_wait_share": "waiting for data in % of the time"}.items():
        x, y = line(records, name)
        if not np.isnan(y).all():
            label = f"{unit} over the epochs: median {np.nanmedian(y):,.3g}"
            shown.append(charts.to_svg(charts.curves([("training", x, y)], unit), name, label))
    return shown


def commands(files):
    """{name: command for a shell, or None}: "anywhere" and "with_folder" repeat the run, "evaluate" evaluates it again."""
    arguments = flags_lib.repeat_arguments(files.values)
    path = files.path.absolute()
    return {
        "anywhere": " \\\n  ".join(["python main.py", *map(quoted, arguments)]) if arguments else None,
        "with_folder": main_command(f"--flagfile={path / 'run.flags'}", "--workdir=NEW_FOLDER") if files.has_flagfile else None,
        "evaluate": main_command("--mode=evaluate", f"--workdir={path}"),
    }


def settings(values):
    """The settings in config.json: {section: [(name, value as text, help, whether it differs from its default)]}."""
    groups = {}
    for section, field in config_lib.leaves():
        if field.name in values and field.name not in ("mode", "workdir"):
            value = values[field.name]
            text = "not given" if value is None else flags_lib.flag_text(value) or "empty"
            row = field.name, text, field.metadata["help"], value != field.default
            groups.setdefault(section.capitalize(), []).append(row)
    return groups


def _text(name, value):
    separator = " x " if name == "image_shape" else ", "
    if isinstance(value, dict):
        value = [f"{key}={text}" for key, text in value.items()]
    return (separator.join(map(str, value)) if isinstance(value, list) else str(value)) or "none"
