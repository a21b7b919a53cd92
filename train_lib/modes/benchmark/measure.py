"""The mode `benchmark`: measures what limits the training speed and says what to try next."""

import contextlib
import dataclasses
import sys
import tempfile
import time
from statistics import median

import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore
from train_lib.cli import environment
from train_lib.cli.failures import explained
from train_lib.distribution.strategy import describe
from train_lib.modes.benchmark import verdict
from train_lib.modes.benchmark.fit import DefaultFitRow, FitRow
from train_lib.modes.benchmark.inputs import INPUT_SECONDS, DrawnRow, ReadRow
from train_lib.modes.benchmark.loop import LoopRow
from train_lib.modes.benchmark.rows import INPUTS, OF_A_STREAM, RowFailed, StepRow, rest
from train_lib.records.workdir import Workdir
from train_lib.setup import open_run

# {row: its class}. `config_lib.BENCHMARK_ROWS` describes the rows.
CLASSES = dict.fromkeys(INPUTS, DrawnRow) | {
    "read": ReadRow, "step": StepRow, "one_device": StepRow, "loop": LoopRow, "loop_constant": LoopRow, "model_fit": FitRow,
    "model_fit_default": DefaultFitRow,
}
DESCRIBED = ("dataset", "model", "model_options", "precision", "xla", "global_batch_size", "steps_per_loop")  # settings


def benchmark(config, workdir):
    """Measures --benchmark_rows, writes benchmark.json and benchmark.png, and returns 0.

    Raises ExpectedError if nothing can be measured with these settings, data and devices.
    """
    # The folder is not in /tmp, so that the loop writes its checkpoints to the same file system as a run.
    with (explained(config), tempfile.TemporaryDirectory(dir=workdir.path, prefix="benchmark-") as folder,
          contextlib.closing(Bench(_open_run(config, Workdir(folder)), config.modes.benchmark_rows)) as bench):
        bench.warm_up()
        bench.measure_rounds()
        result = bench.result()
    path, picture = workdir.write_json("benchmark.json", result), workdir.path / "benchmark.png"
    verdict.draw(result, picture)
    print("\n" + verdict.table(result))
    print(f"\n{result['verdict'] or 'no verdict'}: {result['advice']}\nwritten: {path}, {picture}")
    return 0


def _open_run(config, workdir):
    """A Run without evaluation, which the benchmark does not measure: no validation split, and nothing that depends on one."""
    without = {"validation_split": "", "test_split": "", "early_stopping_patience": 0, "profile_steps": "", "init_from": None}
    if config.schedule.schedule == "plateau":
        without["schedule"] = "constant"
    config = config_lib.from_values(config_lib.to_values(config) | without)
    run = open_run(config, workdir, None, CheckpointStore(workdir.checkpoints, config.cadence.keep_checkpoints), print)
    run.plan = dataclasses.replace(run.plan, last_step=sys.maxsize)  # the benchmark decides how many steps it takes
    return run


class Bench:
    """A run that is open to be measured, its rows and their rounds.

    The run is in a temporary folder. The row `loop` trains it; the other rows have weights of their own. Without row names, all
    rows are measured that mean something for the devices and the data. `shared` is what one row has made and another can use.
    """

    def __init__(self, run, row_names=""):
        self.run, self.config, self.batch_size = run, run.config, run.config.optimization.global_batch_size
        self.clock, self.shared = time.monotonic, {}
        useless = ["one_device"] if run.strategy.num_replicas_in_sync == 1 else []
        useless += OF_A_STREAM if hasattr(run.train_split, "images") else []
        names = [name for name in config_lib.parse_rows(row_names) if row_names or name not in useless]
        self._rows, self._rounds = dict.fromkeys(names), {name: [] for name in names}  # `warm_up` makes the rows
        self._warm_up_seconds, self._notes = {}, []

    def note(self, line):
        """Prints a line that helps to understand the figures. It also becomes part of benchmark.json."""
        self._notes.append(line)
        print(line)

    def close(self):
        """Closes the rows."""
        for row in filter(None, self._rows.values()):
            row.close()

    def warm_up(self):
        """Makes every row, does the work that only its first call has, and chooses the length of a round."""
        speeds = {}
        for name in list(self._rows):
            with self._leaving_out(name):
                start = self.clock()
                self._rows[name] = CLASSES[name](self, name)
                speeds[name] = self._rows[name].warm_up()
                self._warm_up_seconds[name] = self.clock() - start
                print(f"warm: {name}")
        training = [self.batch_size / speed for name, speed in speeds.items() if name not in INPUTS]
        self._steps, self._num_rounds = verdict.choose_length(training, self.config.device.steps_per_loop)
        seconds = self._num_rounds * (self._steps * sum(training) + INPUT_SECONDS * (len(speeds) - len(training)))
        print(f"measuring {self._num_rounds} rounds of {self._steps} steps, about {seconds:.0f} s in all")

    def measure_rounds(self):
        """Measures all rows in turn, forwards and backwards, so that a machine that slows down does not favour any row."""
        for number in range(self._num_rounds):
            speeds = {}
            for name in list(self._rows) if number % 2 == 0 else list(reversed(self._rows)):
                with self._leaving_out(name):
                    rest()
                    speeds[name] = self._rows[name].measure(self._steps)
                    self._rounds[name].append(speeds[name])
            figures = ", ".join(f"{name} {speeds[name]:,.0f}" for name in self._rows)
            print(f"round {number + 1}/{self._num_rounds}, images/s: {figures}")

    @contextlib.contextmanager
    def _leaving_out(self, name):
        """Continues without a row that cannot be measured. Raises UnusableError if no other row is left."""
        try:
            yield
        except RowFailed as error:
            self.note(f"{name} left out: {error}")
            del self._rounds[name]
            if row := self._rows.pop(name):
                row.close()
            if not self._rows:
                raise UnusableError(f"--benchmark_rows={name}: {error}") from None

    def result(self):
        """The content of benchmark.json."""
        rows, rounds, config, run, bookkeeping = self._rows, self._rounds, self.config, self.run, None
        if loop := rows.get("loop"):
            bookkeeping = loop.bookkeeping(self.batch_size / median(rounds["loop"]))
        decision, advice = verdict.decide(rounds, bookkeeping, config, bool(tf.config.list_logical_devices("GPU")))
        # A deterministic loop does not measure how long it waits for a batch.
        loops = () if config.general.deterministic else ("loop", "loop_constant")
        waits = {name: rows[name].wait_shares for name in loops if name in rows}
        medians, values = {name: median(shares) for name, shares in waits.items()}, config_lib.to_values(config)
        return {
            "rows": verdict.row_figures(rounds),
            "ratios": verdict.ratio_figures(rounds),
            "data_wait_share": medians.get("loop"),
            "data_wait_share_by_round": waits.get("loop"),
            "data_wait_share_of_a_constant_batch": medians.get("loop_constant"),
            "bookkeeping": bookkeeping,
            "traces": loop.traces() if loop else None,
            "model_fit_default_stall_seconds": rows["model_fit_default"].stalls if "model_fit_default" in rows else [],
            "warm_up_seconds": self._warm_up_seconds,
            "first_epoch": rows["read"].first_epoch if "read" in rows else None,
            "verdict": decision,
            "advice": advice,
            "notes": self._notes,
            "environment": environment.describe_machine() | {name: values[name] for name in DESCRIBED} | {
                "devices": describe(run.strategy), "replicas": run.strategy.num_replicas_in_sync,
                "image_shape": list(run.train_split.image_shape), "parameters": run.state.model.count_params(),
                "steps_per_round": self._steps},
        }
