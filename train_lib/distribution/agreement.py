"""What several workers must have in common before they train: settings, the workdir, the step. Knows no TensorFlow."""

import secrets
import time

from input_pipeline.common.errors import SettingError, UnusableError
from train_lib import config as config_lib

OF_THIS_MACHINE = ("data_dir", "workdir")  # paths may differ where one file system is mounted at different places
PROBE = ".workers"
APPEAR_SECONDS = 10.0  # in which a shared file system shows a new file; NFS looks again after 3 s at the latest


def check_common_ground(workers, config, workdir):
    """Refuses workers that were started differently or do not see one workdir; every worker raises the same error.

    Raises:
      SettingError: a setting of the experiment differs between the workers.
      UnusableError: a worker does not see the folder that the chief writes.
    """
    if workers.is_alone:
        return
    ours = {name: value for name, value in config_lib.to_values(config).items() if name not in OF_THIS_MACHINE}
    of_chief, *others = workers.gather(ours)
    for rank, values in enumerate(others, 1):
        for name in ours:
            if values[name] != of_chief[name]:
                remedy = f"the chief was given {of_chief[name]}, {workers.cluster.name(rank)} {values[name]}; "
                raise SettingError(name, ours[name], remedy + "start the same command on all workers")
    token = workers.from_chief(lambda: _leave_token(workdir))
    blind = [workers.cluster.name(rank) for rank, sees in enumerate(workers.gather(_sees(workdir, token))) if not sees]
    workers.from_chief(lambda: (workdir.path / PROBE).unlink(missing_ok=True))
    if blind:
        remedy = "give all workers one folder on a file system that they share"
        raise UnusableError(f"--workdir={workdir.path}: {', '.join(blind)} cannot see what the chief writes there; {remedy}")


def check_same_step(workers, workdir, checkpoint):
    """Refuses workers that would resume at different steps.

    Raises:
      UnusableError: the newest valid checkpoint is not the same for all.
    """
    steps = workers.gather(None if checkpoint is None else checkpoint.step)
    if any(step != steps[0] for step in steps):
        seen = [f"{workers.cluster.name(rank)} sees {'none' if step is None else step}" for rank, step in enumerate(steps)]
        remedy = "wait until the file system shows the same to all and start again, or give another --workdir"
        raise UnusableError(f"{workdir.checkpoints}: the workers see different checkpoints ({', '.join(seen)}); {remedy}")


def _leave_token(workdir):
    token = secrets.token_hex(8)
    (workdir.path / PROBE).write_text(token)
    return token


def _sees(workdir, token):
    deadline = time.monotonic() + APPEAR_SECONDS
    while True:
        try:
            if (workdir.path / PROBE).read_text() == token:
                return True
        except (OSError, UnicodeDecodeError):
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
