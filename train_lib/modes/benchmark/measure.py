"""Measures what limits the training speed: rows side by side, their ratios, a verdict and what to try next."""

import contextlib
import statistics
import tempfile

import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.cli import environment
from train_lib.cli.failures import explained
from train_lib.distribution.strategy import describe
from train_lib.modes.benchmark import chart as benchmark_chart
from train_lib.modes.benchmark import inputs
from train_lib.modes.benchmark import verdict as report
from train_lib.modes.benchmark.fit import DefaultFitRow, FitRow
from train_lib.modes.benchmark.loop import ConstantLoopRow, LoopRow
from train_lib.modes.benchmark.rows import INPUTS, OF_A_STREAM, OneDeviceRow, RowFailed, StepRow, open_bench, rest

# {row: what makes it from a Bench}; `config_lib.BENCHMARK_ROWS` says what each is.
MAKERS = {
    "input": inputs.InputRow, "read": inputs.ReadRow, "read_decode": inputs.ReadDecodeRow,
    "decode_crop": inputs.DecodeCropRow,
    "read_decode_augment": inputs.ReadDecodeAugmentRow, "numpy_gather": inputs.NumpyGatherRow, "canonical": inputs.CanonicalRow,
    "tutorial": inputs.TutorialRow, "step": StepRow, "one_device": OneDeviceRow, "loop": LoopRow,
    "loop_constant": ConstantLoopRow, "model_fit": FitRow, "model_fit_default": DefaultFitRow,
}


def benchmark(config, workdir):
    """The mode `benchmark`: measures --benchmark_rows and writes benchmark.json and benchmark.png into a Workdir; returns 0.

    Raises:
      ExpectedError: nothing can be measured with these settings, data and devices.
    """
    names = config_lib.parse_rows(config.modes.benchmark_rows)
    # Beside the result, not in /tmp: the loop's checkpoints are to cost what they cost on the run's own file system.
    with explained(config), tempfile.TemporaryDirectory(dir=workdir.path, prefix="benchmark-") as folder:
        bench = open_bench(config, folder, print)
        if not config.modes.benchmark_rows:
            names = _of_use(names, bench.run)
        with Measurement(bench, names) as measurement:
            measurement.warm_up()
            measurement.measure_rounds()
            result = measurement.result()
    path = workdir.write_json("benchmark.json", result)
    chart = workdir.path / "benchmark.png"
    benchmark_chart.draw(result, chart)
    print("\n" + report.table(result))
    print(f"\n{result['verdict'] or 'no verdict'}: {result['advice']}\nwritten: {path}, {chart}")
    return 0


def _of_use(names, run):
    """All rows but those that mean nothing for a Run's devices and data. Whoever asks for one by name is told why."""
    useless = {"one_device"} if run.strategy.num_replicas_in_sync == 1 else set()
    useless |= set(OF_A_STREAM) if hasattr(run.train_split, "images") else set()
    return [name for name in names if name not in useless]


class Measurement:
    """The rows under measurement; as a context manager it closes them.

    Args:
      bench: Bench.
      names: of the rows, in the table's order.
    """

    def __init__(self, bench, names):
        self._bench, self._names = bench, list(names)
        self._rows, self._rounds = {}, {}
        self._steps = None
        self._warm_up_seconds = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for row in self._rows.values():
            row.close()

    def warm_up(self):
        """Makes every row, lets it do what only its first call pays for, and chooses how long a round is."""
        speeds = {}
        for name in list(self._names):
            with self._leaving_out(name):
                start = self._bench.clock()
                self._rows[name] = MAKERS[name](self._bench)
                speeds[name] = self._rows[name].warm_up()
                self._warm_up_seconds[name] = self._bench.clock() - start
                self._bench.log(f"warm: {name}")
        config = self._bench.config
        training = [config.optimization.global_batch_size / speed for name, speed in speeds.items()
                    if name not in INPUTS]
        self._steps, self._num_rounds = report.choose_length(training, config.device.steps_per_loop)
        seconds = self._num_rounds * (self._steps * sum(training) + inputs.INPUT_SECONDS * (len(speeds) - len(training)))
        self._bench.log(f"measuring {self._num_rounds} rounds of {self._steps} steps, about {seconds:.0f} s in all")

    def measure_rounds(self):
        """Measures all rows in turn, forwards and backwards, so that a machine that grows slower is no row's fault."""
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
        """Goes on without a row that cannot be measured.

        Raises:
          UnusableError: no other is left.
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

    def stalls(self):
        """Seconds that model_fit_default waited after the last step of each round; [] where it was not measured."""
        return self._rows["model_fit_default"].stalls if "model_fit_default" in self._rows else []

    def waiting(self):
        """benchmark.json's entries on the time between asking for a batch and having it."""
        knows_waits = not self._bench.config.general.deterministic
        measured = [name for name in ("loop", "loop_constant") if name in self._rows and knows_waits]
        shares = {name: self._rows[name].wait_shares for name in measured}
        medians = {name: statistics.median(values) for name, values in shares.items()}
        return {
            "data_wait_share": medians.get("loop"),
            "data_wait_share_by_round": shares.get("loop"),
            "data_wait_share_of_a_constant_batch": medians.get("loop_constant"),
        }

    def result(self):
        """The content of benchmark.json."""
        loop, batch_size = self._rows.get("loop"), self._bench.config.optimization.global_batch_size
        rounds = {name: self._rounds[name] for name in self._rows}
        bookkeeping = None
        if loop:
            seconds_per_step = batch_size / statistics.median(rounds["loop"])
            bookkeeping = report.bookkeeping_figures(loop.costs(), loop.every_steps, seconds_per_step)
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        verdict, advice = report.decide(rounds, bookkeeping, self._bench.config, on_gpu)
        return {
            "rows": report.row_figures(rounds),
            "ratios": report.ratio_figures(rounds),
            **self.waiting(),
            "bookkeeping": bookkeeping,
            "traces": loop.traces() if loop else None,
            "model_fit_default_stall_seconds": self.stalls(),
            "warm_up_seconds": self._warm_up_seconds,
            "first_epoch": self._rows["read"].first_epoch if "read" in self._rows else None,
            "verdict": verdict,
            "advice": advice,
            "notes": self._bench.notes,
            "environment": self._environment(),
        }

    def _environment(self):
        config, run = self._bench.config, self._bench.run
        return environment.describe_machine() | {
            "devices": describe(run.strategy),
            "replicas": run.strategy.num_replicas_in_sync,
            "dataset": config.data.dataset,
            "image_shape": list(run.train_split.image_shape),
            "model": config.network.model,
            "model_options": config.network.model_options,
            "parameters": run.state.model.count_params(),
            "precision": config.network.precision,
            "xla": config.device.xla,
            "global_batch_size": config.optimization.global_batch_size,
            "steps_per_loop": config.device.steps_per_loop,
            "steps_per_round": self._steps,
        }
