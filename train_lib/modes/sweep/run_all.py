"""The mode `sweep`: trains a run for every combination of --sweep, several at once, until all have ended.

Each run is a process of its own, started by the command line that `--dry_run` prints. So it is a run like any other: it resumes,
it can be evaluated, and it ends bit for bit as if it had been started alone.
"""

import collections
import contextlib
import os
import sys
import time

from input_pipeline.common.errors import SettingError, one_line
from input_pipeline.common.small_files import UnusableFile, read_json
from train_lib import config as config_lib
from train_lib.cli.commands import main_command, python_command
from train_lib.cli.signals import stop_request
from train_lib.distribution.cluster import read_cluster
from train_lib.modes.sweep import children
from train_lib.modes.sweep.combinations import plan_runs
from train_lib.modes.sweep.display import Display, progress_of
from train_lib.modes.sweep.hparams import EVENTS, write_hparams
from train_lib.records.lock import is_locked, locked
from train_lib.records.terminal import percent, say
from train_lib.records.workdir import Workdir

POLL_SECONDS = 0.2
LEFT_SECONDS = 120.0  # how long to wait for runs that a killed sweep left; they end after one call and a save
ENDED = {"completed": 0, "early_stopped": 0, "diverged": 4}  # {status: exit code} of runs that are not started again
FAILED, STOPPED = 3, 75  # exit codes
COMPARED = [field.name for _, field in config_lib.leaves() if field.metadata["on_resume"] != "ignore"]


def sweep(config, workdir):
    """Trains all runs of --sweep and writes sweep.json. Returns 0, 3 if a run failed, or 75 if runs are left to be done.

    Raises SettingError before anything is created if a combination cannot work, UnusableError if the folder cannot be used.
    """
    runs = plan_runs(config.modes.sweep, sys.argv[1:], workdir)
    if config.modes.dry_run:
        for run in runs:
            print(main_command(*run.arguments))
        return 0
    if cluster := read_cluster(os.environ):
        remedy = f"{cluster.several}, and each run of a sweep trains on this machine alone; start one process, without TF_CONFIG"
        raise SettingError("mode", "sweep", remedy)
    on_gpus = any(run.config.device.virtual_devices == 1 for run in runs)
    slots = children.make_slots(config, children.find_accelerators(os.environ) if on_gpus else [])
    workdir.create()
    with locked(workdir.path), stop_request.finishing("saving and stopping all runs"):
        return Sweep(config.modes.sweep, runs, workdir, slots).run()


class Sweep:
    """The runs of a sweep, what became of them, and those that train now, each on a Slot."""

    def __init__(self, text, runs, workdir, slots):
        self._text, self._runs, self._workdir, self._slots = text, runs, workdir, slots
        self._outcomes = [self._ended_before(run) or self._outcome(run, "waiting") for run in runs]
        self._waiting = collections.deque(i for i, outcome in enumerate(self._outcomes) if outcome["status"] not in ENDED)
        self._running = {}  # {number of the slot: (index of the run, Popen)}
        self._display = Display(len(runs), len(runs) - len(self._waiting), len(slots))
        self._left = [path for path in map(self._path, runs) if is_locked(path)]  # they still use their accelerators
        self._patient_until = time.monotonic() + LEFT_SECONDS
        if self._left:
            say(f"waiting up to {LEFT_SECONDS:g} s for {len(self._left)} runs that are still written, such as {self._left[0]}")

    def run(self):
        """Runs everything and returns the exit code."""
        self._write()
        stopping = False
        try:
            while self._running or (self._waiting and not stopping):
                if stop_request.received and not stopping:
                    stopping = True
                    self._stop()
                if not stopping:
                    self._start()
                self._collect(stopping)
                self._display.refresh(self._progress)
                time.sleep(POLL_SECONDS)
        finally:  # also after an error
            self._stop()
            for _, process in self._running.values():
                process.wait()
            self._display.close()
        return self._conclude()

    def _stop(self):
        for _, process in self._running.values():
            process.terminate()

    def _start(self):
        """Starts a waiting run on each free Slot."""
        self._left = [path for path in self._left if is_locked(path)]
        if self._left and time.monotonic() < self._patient_until:
            return
        free = [slot for slot in range(len(self._slots)) if slot not in self._running]
        for slot in free[: len(self._waiting)]:
            index = self._waiting.popleft()
            run = self._runs[index]
            self._running[slot] = index, children.start(run.arguments, self._path(run), self._slots[slot])
            self._outcomes[index] = self._outcome(run, "running")
            self._write()
            self._display.started(index, run.folder)

    def _collect(self, stopping):
        """Notes the runs that have ended since the last call."""
        for slot, (index, process) in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[slot]
            run, path = self._runs[index], self._path(self._runs[index])
            code = 128 - code if code < 0 else code  # as in a shell, if a signal ended it
            result = (Workdir(path).read_result() or {}) if code in (*ENDED.values(), STOPPED) else {}
            status = result.get("status", "failed")
            if code == STOPPED or (stopping and code > 128):  # before it could listen to the signal
                status = "preempted"
            self._outcomes[index] = self._outcome(run, status, code, result)
            self._write()
            if status in ENDED:
                write_hparams(path, run.settings, result)
            text = f"{status} (exit code {code}): {children.last_line(path / 'output.log')}"
            if code == 0:
                accuracies = (f"{name} accuracy {percent(result.get(key))}" for name, key in
                              (("validation", "best_validation_accuracy"), ("test", "test_accuracy")))
                text = ", ".join((status.replace("_", " "), *accuracies))
            self._display.ended(index, run.folder, one_line(text))

    def _conclude(self):
        """Prints how the runs have ended and what to type next. Returns the exit code."""
        path, counts = self._workdir.path.absolute(), collections.Counter(outcome["status"] for outcome in self._outcomes)
        print(f"{len(self._runs)} runs: " + ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items()))
        if failed := counts["failed"] + counts["diverged"]:
            print(f"error: {failed} of {len(self._runs)} runs failed or diverged; {path}/sweep.json lists them, output.log in "
                  "the folder of each says why; the same command tries those again that failed", file=sys.stderr)
        if counts["preempted"] + counts["waiting"]:
            print(f"stopped; to go on: {main_command(*sys.argv[1:], f'--workdir={path}')}", file=sys.stderr)
            return STOPPED
        print("TensorBoard  " + python_command("-m", "tensorboard.main", f"--logdir={path}"))
        print("next         " + main_command("--mode=compare", f"--inputs={path}", f"--workdir={path}"))
        return FAILED if failed else 0

    def _ended_before(self, run):
        """The outcome of a run that has ended with the same settings; None if it has to be started.

        If a setting differs, the process of the run decides what that means: to go on, to do nothing, or to refuse it.
        """
        path, wanted = self._path(run), config_lib.to_values(run.config)
        result = Workdir(path).read_result() or {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stored, status = read_json(path / "config.json"), result.get("status")
            if status in ENDED and all(stored.get(name) == wanted[name] for name in COMPARED):
                if not (path / EVENTS).exists():  # it was not started by a sweep
                    write_hparams(path, run.settings, result)
                return self._outcome(run, status, ENDED[status], result)
        return None

    def _path(self, run):
        return self._workdir.path / run.folder

    def _progress(self, slot):
        if slot not in self._running:
            return ""
        run = self._runs[self._running[slot][0]]
        return progress_of(self._path(run), run.config.schedule.epochs)

    @staticmethod
    def _outcome(run, status, code=None, result=None):
        """An entry of sweep.json."""
        known = {"folder": run.folder, "settings": run.settings, "status": status, "exit_code": code}
        return known | (result or {}) | known

    def _write(self):
        try:
            self._workdir.write_json("sweep.json", {"sweep": self._text, "runs": self._outcomes})
        except UnusableFile as error:
            say(f"{error.path}: cannot be written ({error.reason}); going on")
