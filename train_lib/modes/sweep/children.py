"""The processes of a sweep: which part of the machine each gets, how it is started, and how it ends with the sweep."""

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

from input_pipeline.common.errors import SettingError
from train_lib.cli.commands import main_words

# TensorFlow counts, because it may find no GPU where the driver sees some, and knows what CUDA_VISIBLE_DEVICES means.
COUNT = "import tensorflow; print('gpus:', len(tensorflow.config.list_physical_devices('GPU')))"
# Becomes the command, which gets SIGTERM if the sweep is killed. That runs before any thread of the command exists, so it is
# safe, unlike code between fork and exec of a process that has threads.
GUARD = """import ctypes, os, signal, sys
parent, cores, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if cores:
    os.sched_setaffinity(0, map(int, cores.split(",")))
if os.getppid() == int(parent):
    os.execv(command[0], command)"""


class Slot(NamedTuple):
    """What one of the runs of a moment has for itself: some accelerators, or some cores, or neither."""

    accelerators: tuple = ()  # entries of CUDA_VISIBLE_DEVICES
    cores: tuple = ()


def make_slots(config, accelerators):
    """The Slots of a sweep: as many runs can train at once. `accelerators` are the names that `find_accelerators` returned.

    Raises SettingError if --devices or --parallel asks for more accelerators than there are.
    """
    parallel, size = config.modes.parallel, config.device.devices or 1
    if not accelerators:
        parallel = max(parallel, 1)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(cores) // parallel if parallel > 1 else 0
        return [Slot(cores=tuple(cores[index * share : (index + 1) * share])) for index in range(parallel)]
    count = len(accelerators)
    if size > count:
        raise SettingError("devices", size, f"there are {count} accelerators; give at most that")
    if parallel * size > count:
        remedy = f"a run takes {size} of the {count} accelerators; give at most {count // size}, or 0"
        raise SettingError("parallel", parallel, remedy)
    slots = [Slot(tuple(accelerators[first : first + size])) for first in range(0, count - size + 1, size)]
    return slots[: parallel or None]


def find_accelerators(environ):
    """The GPUs that TensorFlow can use, as entries of CUDA_VISIBLE_DEVICES. Takes seconds if there may be any."""
    if not (shutil.which("nvidia-smi") or os.path.exists("/dev/nvidiactl")):
        return []
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, env=environ)
    count = int(done.stdout.rpartition("gpus:")[2] or 0)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]


def start(arguments, folder, slot):
    """Starts main.py with these arguments on a Slot; its output is appended to output.log in the folder. Returns a Popen.

    A terminal's Ctrl-C does not reach it, because it has a process group of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ)
    if slot.accelerators:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.accelerators)
    if slot.cores:
        # As many threads as a run that has the machine for itself: their number decides in which order sums are rounded.
        environ.setdefault("TF_NUM_INTRAOP_THREADS", str(len(os.sched_getaffinity(0))))
    command = [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid()), ",".join(map(str, slot.cores)), *main_words(*arguments)]
    with open(folder / "output.log", "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ, process_group=0)


def last_line(path):
    """The last line of a text file that is not empty."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
