"""The mode `benchmark`: measures what limits the training speed and says what to try next."""

import contextlib
import functools
import statistics
import tempfile

import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.cli import environment
from train_lib.cli.failures import explained
from train_lib.distribution.strategy import describe
from train_lib.modes.benchmark import chart, verdict
from train_lib.modes.benchmark.fit import DefaultFitRow, FitRow
from train_lib.modes.benchmark.inputs import INPUT_SECONDS, DrawnRow, ReadRow
from train_lib.modes.benchmark.loop import ConstantLoopRow, LoopRow
from train_lib.modes.benchmark.rows import INPUTS, OF_A_STREAM, RowFailed, StepRow, one_device_row, open_bench, rest

# {row: function that makes it from a Bench}. `config_lib.BENCHMARK_ROWS` describes the rows.
MAKERS = {name: functools.partial(DrawnRow, name=name) for name in INPUTS} | {
    "read": functools.partial(ReadRow, name="read"), "step": StepRow, "one_device": one_device_row, "loop": LoopRow,
    "loop_constant": ConstantLoopRow, "model_fit": FitRow, "model_fit_default": DefaultFitRow,
}


def benchmark(config, workdir):
    """The mode `benchmark`: measures --benchmark_rows, writes benchmark.json and benchmark.png into a Workdir and returns 0.

    Raises:
      ExpectedError: nothing can be measured with these settings, data and devices.
    """
    names = config_lib.parse_rows(config.modes.benchmark_rows)
    # The folder is not in /tmp, so that the loop writes its checkpoints to the same file system as a run.
    with explained(config), tempfile.TemporaryDirectory(dir=workdir.path, prefix="benchmark-") as folder:
        bench = open_bench(config, folder, print)
        if not config.modes.benchmark_rows:
            names = _useful(names, bench.run)
        with contextlib.closing(Measurement(bench, names)) as measurement:
            measurement.warm_up()
            measurement.measure_rounds()
            result = measurement.result()
    path = workdir.write_json("benchmark.json", result)
    picture = workdir.path / "benchmark.png"
    chart.draw(result, picture)
    print("\n" + verdict.table(result))
    print(f"\n{result['verdict'] or 'no verdict'}: {result['advice']}\nwritten: {path}, {picture}")
    return 0


def _useful(names, run):
    """The rows that mean something for the devices and the data of a Run. A row that the user names is tried in any case."""
    useless = {"one_device"} if run.strategy.num_replicas_in_sync == 1 else set()
    useless |= set(OF_A_STREAM) if hasattr(run.train_split, "images") else set()
    return [name for name in names if name not in useless]


class Measurement:
    """The rows and their rounds.

    Args:
      bench: Bench.
      names: names of the rows, in the order of the table.
    """

    def __init__(self, bench, names):
        self._bench, self._names = bench, list(names)
        self._rows, self._rounds = {}, {}
        self._steps = None
        self._warm_up_seconds = {}

    def close(self):
        """Closes the rows."""
        for row in self._rows.values():
            row.close()

    def warm_up(self):
        """Makes every row, does the work that only its first call has, and chooses the length of a round."""
        speeds = {}
        for name in self._names:
            with self._leaving_out(name):
                start = self._bench.clock()
                self._rows[name] = MAKERS[name](self._bench)
                speeds[name] = self._rows[name].warm_up()
                self._warm_up_seconds[name] = self._bench.clock() - start
                self._bench.log(f"warm: {name}")
        training = [self._bench.batch_size / speed for name, speed in speeds.items() if name not in INPUTS]
        self._steps, self._num_rounds = verdict.choose_length(training, self._bench.config.device.steps_per_loop)
        seconds = self._num_rounds * (self._steps * sum(training) + INPUT_SECONDS * (len(speeds) - len(training)))
        self._bench.log(f"measuring {self._num_rounds} rounds of {self._steps} steps, about {seconds:.0f} s in all")

    def measure_rounds(self):
        """Measures all rows in turn, forwards and backwards, so that a machine that slows down does not favour any row."""
        for number in range(self._num_rounds):
            names = list(self._rows) if number % 2 == 0 else list(reversed(self._rows))
            speeds = {}
            for name in names:
                with self._leaving_out(name):
                    rest()
                    speeds[name] = self._rows[name].measure(self._steps)
                    self._rounds.setdefault(name, []).append(speeds[name])
            figures = ", ".join(f"{name} {speeds[name]:,.0f}" for name in self._rows)
            self._bench.log(f"round {number + 1}/{self._num_rounds}, images/s: {figures}")

    @contextlib.contextmanager
    def _leaving_out(self, name):
        """Continues without a row that cannot be measured.

        Raises:
          UnusableError: no other row is left.
        """
        try:
            yield
        except RowFailed as error:
            self._bench.note(f"{name} left out: {error}")
            self._names = [other for other in self._names if other != name]
            self._rounds.pop(name, None)
            if name in self._rows:
                self._rows.pop(name).close()
            if not self._names:
                raise UnusableError(f"--benchmark_rows={name}: {error}") from None

    def result(self):
        """The content of benchmark.json."""
        rows, rounds, config = self._rows, {name: self._rounds[name] for name in self._rows}, self._bench.config
        bookkeeping, loop = None, rows.get("loop")
        if loop:
            seconds_per_step = self._bench.batch_size / statistics.median(rounds["loop"])
            bookkeeping = verdict.bookkeeping_figures(loop.costs(), loop.every_steps, seconds_per_step)
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        decision, advice = verdict.decide(rounds, bookkeeping, config, on_gpu)
        # A deterministic loop does not measure how long it waits for a batch.
        waits = {} if config.general.deterministic else {
            name: rows[name].wait_shares for name in ("loop", "loop_constant") if name in rows}
        medians = {name: statistics.median(shares) for name, shares in waits.items()}
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
            "notes": self._bench.notes,
            "environment": self._environment(),
        }

    def _environment(self):
        run, values = self._bench.run, config_lib.to_values(self._bench.config)
        names = ("dataset", "model", "model_options", "precision", "xla", "global_batch_size", "steps_per_loop")
        return environment.describe_machine() | {name: values[name] for name in names} | {
            "devices": describe(run.strategy),
            "replicas": run.strategy.num_replicas_in_sync,
            "image_shape": list(run.train_split.image_shape),
            "parameters": run.state.model.count_params(),
            "steps_per_round": self._steps,
        }
