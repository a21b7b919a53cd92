"""The folder of a run: its paths and small files, apart from checkpoints and records. Does not import TensorFlow."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import time

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.small_files import UnusableFile, read_json, replace_file, unusable
from input_pipeline.config import check_own_files
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.cli.inputs import check_inputs

NEED_DATA = ("train", "evaluate", "benchmark")  # modes
RESULT, BAD_EXAMPLES = "result.json", "bad_examples.txt"


class Workdir:
    """Paths and small files of one run, in a folder that `create` makes.

    Only the process that it `is_ours` for writes. A worker other than the chief reads what the chief writes, and writes nothing.
    """

    def __init__(self, path, is_ours=True):
        self.path, self.is_ours = pathlib.Path(os.path.expanduser(path)), is_ours

    def create(self):
        """Makes the folder. Raises UnusableError if it cannot be made or written to."""
        if not self.is_ours:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # another process may do the same at this moment
        except (OSError, ValueError) as error:  # ValueError for a name that no file system takes
            reason = getattr(error, "strerror", None) or error
            raise UnusableError(f"--workdir={self.path}: cannot be written ({reason}); give another folder") from None

    @property
    def checkpoints(self):
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"

    def export_target(self, config):
        """The folder that --mode=export writes."""
        return self.path / "export" if config.modes.export_dir is None else pathlib.Path(config.modes.export_dir).expanduser()

    def write_config(self, config):
        """Writes config.json and run.flags."""
        self.write_json("config.json", config_lib.to_values(config) | {"workdir": None})
        self.write_file("run.flags", flags_lib.to_flagfile(config))

    def read_result(self):
        """Returns result.json as a dict; None if the run has not ended or the file is damaged."""
        with contextlib.suppress(OSError, ValueError):
            result = read_json(self.path / RESULT)
            return result if isinstance(result, dict) else None
        return None

    def remove_result(self):
        """Removes result.json, because the run goes on."""
        if self.is_ours:
            with unusable(self.path / RESULT, "removed"):
                (self.path / RESULT).unlink(missing_ok=True)

    def write_bad_examples(self, lines):
        """Adds the lines that bad_examples.txt lacks, one per example that was skipped."""
        path = self.path / BAD_EXAMPLES
        with contextlib.suppress(OSError, UnusableFile):  # a full disk is an error when a checkpoint cannot be saved, not here
            listed = path.read_text("utf-8").splitlines() if path.exists() else []
            if new := [line for line in lines if line not in listed]:
                self.write_file(BAD_EXAMPLES, "".join(f"{line}\n" for line in [*listed, *new]).encode(errors="replace"))

    def write_json(self, name, value):
        """Writes a JSON file with one rename and returns its path."""
        return self.write_file(name, json.dumps(value, indent=1) + "\n")

    def write_file(self, name, content):
        """Writes a text or bytes into a file with one rename and returns its path. If that fails, the file stays as it was."""
        if self.is_ours:
            with unusable(self.path / name):
                replace_file(self.path / name, content)
        return self.path / name


def open_workdir(config, is_chief=True):
    """Returns the Workdir that a mode works in. Everything that needs no TensorFlow is checked first.

    Raises UnusableError if it cannot be written, or holds no checkpoint although the mode needs one; SettingError if --dataset,
    --init_from or --inputs names something that does not exist, or --export_dir something that does.
    """
    path = config.general.workdir
    workdir = Workdir(_new_path(config) if path is None else path, is_ours=is_chief)
    initial, has_checkpoint = config.network.init_from, any(workdir.checkpoints.glob("step-*"))
    if initial and not has_checkpoint and not os.path.exists(os.path.expanduser(initial)):
        raise SettingError("init_from", initial, "there is no such folder; give a run's workdir or a checkpoint folder")
    if config.general.mode in ("report", "sweep", "compare"):  # a report reads what is there, the others check their runs
        return workdir
    if config.general.mode in config_lib.NEED_A_RUN and not has_checkpoint:
        raise UnusableError(f"--workdir={workdir.path}: holds no checkpoint; give the folder of a run that has saved one")
    if config.general.mode in NEED_DATA:
        check_own_files(config.data)
    if config.general.mode == "predict":
        check_inputs(config.modes.inputs)
    if config.general.mode == "export" and os.path.lexists(target := workdir.export_target(config)):
        raise SettingError("export_dir", target, "is there already; give another, or remove it")
    workdir.create()
    return workdir


def _new_path(config):
    """A folder below runs/ that does not exist yet, named after mode, data, network and time."""
    data = re.sub(r"[^\w.-]+", "-", config.data.dataset)[-80:]  # a path may be longer than the name of a folder can be
    about = "" if config.general.mode == "compare" else f"{data}-{config.network.model}-"
    name = f"{about}{time.strftime('%Y%m%d-%H%M%S')}".lstrip("-.")
    mode = "" if config.general.mode == "train" else f"{config.general.mode}-"
    paths = (pathlib.Path("runs") / f"{mode}{name}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())
