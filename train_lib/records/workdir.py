"""The run's folder: what the contract promises to leave in it, but for checkpoints and records. Knows no TensorFlow."""

import contextlib
import json
import os
import pathlib
import re
import time

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.own_files import check_own_files
from input_pipeline.common.small_files import UnusableFile, read_json, replace_file, unusable
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.cli.inputs import check_inputs

NEED_DATA = ("train", "evaluate", "benchmark")  # modes
RESULT, BAD_EXAMPLES = "result.json", "bad_examples.txt"


class Workdir:
    """Paths and small files of one run.

    Args:
      path: the folder; made by `create`, not here.
    """

    is_ours = True  # to write

    def __init__(self, path):
        self.path = pathlib.Path(os.path.expanduser(path))

    def create(self):
        """Makes the folder.

        Raises:
          UnusableError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)  # another process may be looking, too
        except (OSError, ValueError) as error:  # of a name that no file system takes
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
        """result.json as a dict, None where the run has not ended or the file is not one."""
        try:
            result = read_json(self.path / RESULT)
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    def remove_result(self):
        """Says that the run goes on."""
        with unusable(self.path / RESULT, "removed"):
            (self.path / RESULT).unlink(missing_ok=True)

    def write_bad_examples(self, lines):
        """Adds to bad_examples.txt what it lacks of `lines`, one for each example that was skipped; nothing where none was."""
        path = self.path / BAD_EXAMPLES
        with contextlib.suppress(OSError, UnusableFile):  # of a disk that is full, say: told where a checkpoint cannot be saved
            listed = path.read_text("utf-8").splitlines() if path.exists() else []
            if new := [line for line in lines if line not in listed]:
                self.write_file(BAD_EXAMPLES, "".join(f"{line}\n" for line in [*listed, *new]).encode(errors="replace"))

    def write_json(self, name, value):
        """Writes a JSON file by one rename and returns its path."""
        return self.write_file(name, json.dumps(value, indent=1) + "\n")

    def write_file(self, name, content):
        """Writes a text or bytes into a file by one rename and returns its path; where that fails, the file stays as it was."""
        with unusable(self.path / name):
            replace_file(self.path / name, content)
        return self.path / name


class ReadOnlyWorkdir(Workdir):
    """The run's folder as a worker other than the chief has it: what the chief writes is read, all else is left alone."""

    is_ours = False

    def create(self):
        """The chief makes the folder."""

    def write_config(self, config):
        """The chief writes it."""

    def remove_result(self):
        """The chief removes it."""

    def write_bad_examples(self, lines):
        """The chief writes it."""

    def write_file(self, name, content):
        """The chief writes it."""


def open_workdir(config, is_chief=True):
    """The Workdir that a mode works in, judged before TensorFlow is imported.

    Args:
      config: ExperimentConfig.
      is_chief: whether this process is the one that writes it.

    Raises:
      UnusableError: it cannot be written, or holds no checkpoint where the mode needs one.
      SettingError: --dataset, --init_from or --inputs names nothing, or --export_dir something that is there.
    """
    workdir = _choose(config) if is_chief else ReadOnlyWorkdir(config.general.workdir)
    initial, has_checkpoint = config.network.init_from, any(workdir.checkpoints.glob("step-*"))
    if initial and not has_checkpoint and not os.path.exists(os.path.expanduser(initial)):
        raise SettingError("init_from", initial, "there is no such folder; give a run's workdir or a checkpoint folder")
    if config.general.mode == "report":  # which reads whatever is there
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


def _choose(config):
    """The Workdir of --workdir, or a new one under runs/ named after data, network and time."""
    if config.general.workdir is not None:
        return Workdir(config.general.workdir)
    data = re.sub(r"[^\w.-]+", "-", config.data.dataset)[-80:]  # a path may be longer than a name of a folder can be
    name = f"{data}-{config.network.model}-{time.strftime('%Y%m%d-%H%M%S')}".lstrip("-.")
    if config.general.mode != "train":
        name = f"{config.general.mode}-{name}"
    path, number = pathlib.Path("runs") / name, 2
    while path.exists():
        path, number = pathlib.Path("runs") / f"{name}-{number}", number + 1
    return Workdir(path)
