"""The mode `report`: writes report.html, one page about a training run that is still going on or has ended.

It reads files of the workdir and nothing else. So it needs neither TensorFlow nor the data set, and it does not disturb the run.
"""

import base64
import contextlib
import dataclasses
import pathlib
import re
import time

import jinja2

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import parse_json
from train_lib.modes.report.sections import contents
from train_lib.records.json_lines import METRICS_RECORD, TIMING_RECORD, JsonLines
from train_lib.records.terminal import number, percent

REPORT = "report.html"
TEMPLATE = pathlib.Path(__file__).with_name(REPORT)
EVALUATION_NAMES = ("step", "split", "examples", "loss", "accuracy", "top_5_accuracy", "accuracy_per_class", "class_names",
                    "confusion_matrix")
_PICTURE = re.compile(r"(\w+)-([0-9]{8,})\.png")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a workdir, each under its name. If a file does not exist, its attribute is {} or []."""

    path: pathlib.Path  # the workdir
    values: dict  # config.json, {setting name: value}
    metrics: list
    timing: list
    result: dict
    environment: dict
    evaluation: dict  # of the newest weights that `--mode=evaluate` or the training run itself evaluated
    mistakes: list  # in that evaluation
    pictures: dict  # {name: [(step, PNG file in base64)]}, the first and the last picture of each name
    has_flagfile: bool
    read_at: str  # the time of day

    def records(self, kind):
        """The records of one kind: train, validation or test."""
        return [record for record in self.metrics if record["kind"] == kind]


def report(config, workdir):
    """Writes report.html into a Workdir with one rename and returns 0.

    Raises:
      UnusableError: the run has no record yet, or a file cannot be read or written.
    """
    files = read_run(workdir.path)
    try:
        page = render(files)
    except (TypeError, ValueError, LookupError, AttributeError, jinja2.UndefinedError) as error:  # somebody edited the files
        remedy = "look at the newest of them, or copy the folder without the edited files"
        raise UnusableError(f"{workdir.path}: a record or JSON file is not what a run writes ({error!r}); {remedy}") from None
    # A class is named after a folder, whose name may contain any bytes.
    print(f"written: {workdir.write_file(REPORT, page.encode(errors='backslashreplace'))}")
    return 0


def render(files):
    """The page as text, from RunFiles."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "percent": percent}
    return environment.from_string(TEMPLATE.read_text()).render(contents(files))


def read_run(path):
    """Reads the RunFiles of a workdir.

    Raises:
      UnusableError: there is no record, or a file does not contain what it should.
    """
    metrics = JsonLines(path / "metrics.jsonl", METRICS_RECORD).read()
    if not metrics:
        remedy = "a run writes its first after --log_every_steps steps; wait for it, or give another folder"
        raise UnusableError(f"--workdir={path}: holds no run with a record; {remedy}")
    folders = [folder for folder in (path, path / "pictures") if (folder / "evaluation.json").exists()]
    evaluations = [(folder, _read_json(folder / "evaluation.json", EVALUATION_NAMES)) for folder in folders]
    # If both are of one step, take the one the user asked for: `--mode=evaluate` writes into the workdir itself.
    folder, evaluation = max(evaluations, key=lambda found: found[1]["step"], default=(path, {}))
    mistakes = _read_json(folder / "mistakes.json")
    return RunFiles(
        path=path,
        values=_read_json(path / "config.json"),
        metrics=metrics,
        timing=JsonLines(path / "timing.jsonl", TIMING_RECORD).read(),
        result=_read_json(path / "result.json"),
        environment=_read_json(path / "environment.json"),
        evaluation=evaluation,
        mistakes=mistakes.get("mistakes", []) if mistakes.get("step") == evaluation.get("step") else [],
        pictures=_read_pictures(path / "pictures"),
        has_flagfile=(path / "run.flags").exists(),
        read_at=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    )


def _read_json(path, names=()):
    """The object in a JSON file, which must contain `names`; {} if the file does not exist."""
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(names):
        raise UnusableError(f"{path}: is not what a run writes; remove it, or let the program that wrote it write it again")
    return value


def _read_pictures(folder):
    steps, found = {}, {}
    for path in folder.glob("*.png"):
        if match := _PICTURE.fullmatch(path.name):
            steps.setdefault(match[1], []).append((int(match[2]), path))
    for name, pictures in steps.items():
        # A run of a hundred evaluations leaves a hundred pictures. The page shows the first and the last.
        for step, path in sorted({min(pictures), max(pictures)}):
            with contextlib.suppress(FileNotFoundError):  # a run that went back to a checkpoint has just removed it
                found.setdefault(name, []).append((step, base64.b64encode(path.read_bytes()).decode()))
    return found
