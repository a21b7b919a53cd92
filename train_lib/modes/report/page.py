"""The mode `report`: one page, report.html, about a run that is under way or has ended.

It reads what lies in the workdir and nothing else, so that it needs neither TensorFlow nor the data set, and disturbs no run.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import string
import time

from input_pipeline.common.errors import UnusableError
from train_lib.modes.report import sections
from train_lib.records.json_lines import METRICS_RECORD, TIMING_RECORD, JsonLines

REPORT = "report.html"
TEMPLATE = pathlib.Path(__file__).with_name(REPORT)
EVALUATION_NAMES = ("step", "split", "examples", "loss", "accuracy", "top_5_accuracy", "accuracy_per_class", "class_names",
                    "confusion_matrix")
_PICTURE = re.compile(r"(\w+)-([0-9]{8,})\.png")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a workdir says of its run. What is not there is empty, {} or [].

    Attributes:
      path: the workdir.
      values: config.json, {setting name: value}.
      metrics, timing: the records.
      result, environment: the JSON files of these names.
      evaluation, mistakes: of the newest weights that were judged, by `--mode=evaluate` or by the run.
      read_at: the time of day.
      pictures: {name: [(step, bytes of a PNG file)]}, of each name the first and the last.
      has_flagfile: whether run.flags is there.
    """

    path: pathlib.Path
    values: dict
    metrics: list
    timing: list
    result: dict
    environment: dict
    evaluation: dict
    mistakes: list
    pictures: dict
    has_flagfile: bool
    read_at: str

    def records(self, kind):
        """The records of one kind."""
        return [record for record in self.metrics if record["kind"] == kind]


def report(config, workdir):
    """Writes report.html into a Workdir, by one rename, and returns 0.

    Raises:
      UnusableError: the run has no record yet, or a file cannot be read or written.
    """
    files = read_run(workdir.path)
    try:
        page = render(files)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:  # values of other types than a run writes
        remedy = "look at the newest of them, or copy the folder without what was edited"
        reason = f"a record or JSON file is not what a run leaves there ({error!r})"
        raise UnusableError(f"{workdir.path}: {reason}; {remedy}") from None
    print(f"written: {workdir.write_file(REPORT, page)}")
    return 0


def render(files):
    """The page, as text, from RunFiles."""
    title, body = sections.page(files)
    return string.Template(TEMPLATE.read_text()).substitute(title=title, body=body)


def read_run(path):
    """The RunFiles of a workdir, as far as they are there.

    Raises:
      UnusableError: no record is there, or a file is not what it should be.
    """
    metrics = JsonLines(path / "metrics.jsonl", METRICS_RECORD).read()
    if not metrics:
        remedy = "a run writes its first after --log_every_steps steps; wait for it, or give another folder"
        raise UnusableError(f"--workdir={path}: holds no run with a record; {remedy}")
    judged = [folder for folder in (path, path / "pictures") if (folder / "evaluation.json").exists()]
    # Of the same step, what the user asked for last: `--mode=evaluate` writes into the workdir itself.
    evaluations = [(folder, _read_json(folder / "evaluation.json", EVALUATION_NAMES)) for folder in judged]
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
    """The object in a JSON file, which holds `names`; {} where there is no file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnusableError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(names):
        raise UnusableError(f"{path}: is not what a run leaves there; remove it, or let what wrote it write it again")
    return value


def _read_pictures(folder):
    steps, found = {}, {}
    for path in folder.glob("*.png"):
        if match := _PICTURE.fullmatch(path.name):
            steps.setdefault(match[1], []).append((int(match[2]), path))
    for name, pictures in steps.items():
        # A hundred evaluations have left a hundred pictures; the page shows the first and the last.
        for step, path in sorted({min(pictures), max(pictures)}):
            with contextlib.suppress(FileNotFoundError):  # a run that went back to a checkpoint has just removed it
                found.setdefault(name, []).append((step, path.read_bytes()))
    return found
