"""The run's folder: what the contract promises to leave in it, but for checkpoints and records. Knows no TensorFlow."""

import contextlib
import json
import pathlib
import re
import time

from input_pipeline.errors import SettingError, UnusableError
from train_lib import config as config_lib
from train_lib import flags as flags_lib

RESULT, BAD_EXAMPLES = "result.json", "bad_examples.txt"


class Workdir:
    """Paths and small files of one run.

    Args:
      path: the folder; made by `create`, not here.
    """

    is_ours = True  # to write

    def __init__(self, path):
        self.path = pathlib.Path(path).expanduser()

    def create(self):
        """Makes the folder.

        Raises:
          UnusableError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UnusableError(f"--workdir={self.path}: cannot be written ({error.strerror}); give another folder") from None

    @property
    def checkpoints(self):
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"

    def write_config(self, config):
        """Writes config.json and run.flags."""
        self.write_json("config.json", config_lib.to_values(config) | {"workdir": None})
        (self.path / "run.flags").write_text(flags_lib.to_flagfile(config))

    def read_result(self):
        """result.json as a dict, None where the run has not ended or the file is not one."""
        try:
            result = json.loads((self.path / RESULT).read_text())
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    def remove_result(self):
        """Says that the run goes on."""
        (self.path / RESULT).unlink(missing_ok=True)

    def write_bad_examples(self, lines):
        """Adds to bad_examples.txt what it lacks of `lines`, one for each example that was skipped; nothing where none was."""
        path = self.path / BAD_EXAMPLES
        with contextlib.suppress(OSError):  # of a disk that is full, say: told where a checkpoint cannot be saved
            listed = path.read_text("utf-8").splitlines() if path.exists() else []
            if new := [line for line in lines if line not in listed]:
                self._replace(BAD_EXAMPLES, "".join(f"{line}\n" for line in [*listed, *new]))

    def write_json(self, name, value):
        """Writes a JSON file by one rename and returns its path."""
        return self._replace(name, json.dumps(value, indent=1) + "\n")

    def _replace(self, name, text):
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(text, "utf-8", "replace")
        temporary.replace(self.path / name)
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

    def write_json(self, name, value):
        """The chief writes it."""


def open_workdir(config, is_chief=True):
    """The Workdir that a mode works in, judged before TensorFlow is imported.

    Args:
      config: ExperimentConfig.
      is_chief: whether this process is the one that writes it.

    Raises:
      UnusableError: it cannot be written, or holds no checkpoint where the mode needs one.
      SettingError: --init_from names nothing.
    """
    initial = config.network.init_from
    if initial and not pathlib.Path(initial).expanduser().exists():
        raise SettingError("init_from", initial, "there is no such folder; give a run's workdir or a checkpoint folder")
    workdir = _choose(config) if is_chief else ReadOnlyWorkdir(config.run.workdir)
    if config.run.mode in config_lib.NEED_A_RUN and not any(workdir.checkpoints.glob("step-*")):
        raise UnusableError(f"--workdir={workdir.path}: holds no checkpoint; give the folder of a run that has saved one")
    workdir.create()
    return workdir


def _choose(config):
    """The Workdir of --workdir, or a new one under runs/ named after data, network and time."""
    if config.run.workdir is not None:
        return Workdir(config.run.workdir)
    data = re.sub(r"[^\w.-]+", "-", config.data.dataset)[-80:]  # a path may be longer than a name of a folder can be
    name = f"{data}-{config.network.model}-{time.strftime('%Y%m%d-%H%M%S')}".lstrip("-.")
    if config.run.mode != "train":
        name = f"{config.run.mode}-{name}"
    path, number = pathlib.Path("runs") / name, 2
    while path.exists():
        path, number = pathlib.Path("runs") / f"{name}-{number}", number + 1
    return Workdir(path)
