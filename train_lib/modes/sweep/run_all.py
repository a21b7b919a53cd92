"""The mode `sweep`: trains a run for every combination of --sweep, several at once, until all have ended.

Each run is a process of its own, started by the same command line that `--dry_run` prints. So a run of a sweep is a run like any
other: it resumes, it can be evaluated, and it ends bit for bit as if it had been started alone.
"""

import collections
import contextlib
import os
import sys
import time

from input_pipeline.common.errors import one_line
from input_pipeline.common.small_files import UnusableFile, read_json
from train_lib import config as config_lib
from train_lib.cli.commands import main_command, python_command
from train_lib.cli.signals import stop_request
from train_lib.modes.sweep import children, display, hparams
from train_lib.modes.sweep.combinations import plan_runs
from train_lib.records.lock import locked
from train_lib.records.terminal import percent
from train_lib.records.workdir import Workdir

POLL_SECONDS = 0.2
LOCKED_SECONDS = 120.0  # how long a run waits for the process that its killed sweep left: it ends after one call and a save
ENDED = ("completed", "early_stopped", "diverged")
FAILED, TRY_AGAIN = 3, 75
COMPARED = {field.name for _, field in config_lib.leaves() if field.metadata["on_resume"] != "ignore"}


def sweep(config, workdir):
    """Trains all runs of --sweep and writes sweep.json. Returns 0, 3 if a run failed, or 75 if the sweep was stopped.

    Raises SettingError before anything is created if a combination cannot work, UnusableError if the folder cannot be used.
    """
    runs = plan_runs(config.modes.sweep, sys.argv[1:], workdir)
    if config.modes.dry_run:
        for run in runs:
            print(main_command(*run.arguments))
        return 0
    on_gpus = any(run.config.device.virtual_devices == 1 for run in runs)
    slots = children.make_slots(config, children.find_accelerators(os.environ) if on_gpus else [])
    workdir.create()
    with locked(workdir.path), stop_request.finishing("saving and stopping all runs"):
        return Sweep(config.modes.sweep, runs, workdir, slots).run()


class Sweep:
    """The runs of a sweep, what became of them, and those that train now, each on a Slot."""

    def __init__(self, text, runs, workdir, slots, clock=time.monotonic):
        self._text, self._runs, self._workdir, self._slots, self._clock = text, runs, workdir, slots, clock
        self._outcomes = [self._outcome(run, self._ended_before(run)) for run in runs]
        waiting = [index for index, outcome in enumerate(self._outcomes) if outcome["status"] not in ENDED]
        self._waiting, self._running = collections.deque(waiting), {}  # {number of the slot: (SweptRun, index, Popen)}
        self._display = display.Display(len(runs), len(runs) - len(waiting), len(slots))
        self._patient_until = clock() + LOCKED_SECONDS

    def run(self):
        """Runs everything and returns the exit code."""
        self._write()
        stopping = False
        try:
            while self._running or (self._waiting and not stopping):
                if stop_request.received and not stopping:
                    stopping = True
                    children.stop(process for _, _, process in self._running.values())
                if not stopping:
                    self._start()
                self._collect(stopping)
                self._display.refresh(self._running, self._workdir.path)
                time.sleep(POLL_SECONDS)
        finally:  # also if something is wrong here
            processes = [process for _, _, process in self._running.values()]
            children.stop(processes)
            for process in processes:
                process.wait()
            self._display.close()
        return self._conclude()

    def _start(self):
        """Starts a waiting run on each free Slot. One that is still being written by another process goes to the end."""
        free = [slot for slot in range(len(self._slots)) if slot not in self._running]
        for _ in range(len(self._waiting) if free else 0):
            index = self._waiting.popleft()
            run = self._runs[index]
            path = self._workdir.path / run.folder
            if children.is_locked(path) and self._clock() < self._patient_until:
                self._waiting.append(index)
                continue
            self._outcomes[index] = self._outcome(run, {}, "running")
            slot = free.pop(0)
            self._running[slot] = run, index, children.start(run.arguments, path, self._slots[slot])
            self._display.started(run, self._counted(index))
            self._write()
            if not free:
                return

    def _collect(self, stopping):
        """Notes the runs that have ended since the last call."""
        for slot, (run, index, process) in list(self._running.items()):
            code = children.exit_code(process)
            if code is None:
                continue
            del self._running[slot]
            path = self._workdir.path / run.folder
            result = Workdir(path).read_result() or {}
            statuses = {0: result.get("status", "failed"), 4: "diverged", TRY_AGAIN: "preempted"}
            status = "preempted" if stopping and code > 128 else statuses.get(code, "failed")
            self._outcomes[index] = self._outcome(run, result if code in statuses else {}, status, code)
            self._write()
            text = f"{status} (exit code {code}): {children.last_line(path / 'output.log')}"
            if not code:
                self._write_hparams(run, result, anew=True)
                accuracies = percent(result.get("best_validation_accuracy")), percent(result.get("test_accuracy"))
                text = "{}, validation accuracy {}, test accuracy {}".format(status.replace("_", " "), *accuracies)
            elif code == 4:
                self._write_hparams(run, result, anew=True)
            self._display.ended(run, self._counted(index), one_line(text))

    def _conclude(self):
        """Prints the table and what to type next. Returns the exit code."""
        path, statuses = self._workdir.path.absolute(), [outcome["status"] for outcome in self._outcomes]
        print(display.table(self._runs, self._outcomes))
        if failed := sum(status in ("failed", "diverged") for status in statuses):
            print(f"error: {failed} of {len(statuses)} runs failed or diverged; {path}/sweep.json lists them, and output.log of "
                  "each says why; the same command tries those again that failed", file=sys.stderr)
        if "preempted" in statuses or "waiting" in statuses:
            print(f"stopped; to go on: {main_command(*sys.argv[1:], f'--workdir={path}')}", file=sys.stderr)
            return TRY_AGAIN
        print("TensorBoard  " + python_command("-m", "tensorboard.main", f"--logdir={path}"))
        print("next         " + main_command("--mode=compare", f"--inputs={path}", f"--workdir={path}"))
        return FAILED if failed else 0

    def _ended_before(self, run):
        """The result of a run that has ended with the same settings; {} for a run that has to be started.

        If a setting differs, its process decides what that means: to go on, to do nothing, or to refuse it.
        """
        path = self._workdir.path / run.folder
        result = Workdir(path).read_result() or {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            wanted, stored = config_lib.to_values(run.config), read_json(path / "config.json")
            if result.get("status") in ENDED and all(stored.get(name) == wanted[name] for name in COMPARED):
                self._write_hparams(run, result)
                return result
        return {}

    def _write_hparams(self, run, result, anew=False):
        path = self._workdir.path / run.folder
        with contextlib.suppress(OSError):  # a full disk; the next start writes it
            if anew or not (path / hparams.EVENTS).exists():
                hparams.write_hparams(path, run.folder, run.settings, result)

    def _outcome(self, run, result, status=None, code=None):
        """An entry of sweep.json."""
        status = status or result.get("status", "waiting")
        code = {"diverged": 4, "completed": 0, "early_stopped": 0}.get(status) if code is None else code
        return {"folder": run.folder, "settings": run.settings, **result, "status": status, "exit_code": code}

    def _counted(self, index):
        return f"{index + 1}/{len(self._runs)}"

    def _write(self):
        try:
            self._workdir.write_json("sweep.json", {"sweep": self._text, "runs": self._outcomes})
        except UnusableFile as error:
            self._display.say(f"{error.path}: cannot be written ({error.reason}); going on")
