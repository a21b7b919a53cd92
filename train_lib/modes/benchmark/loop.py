"""The benchmark's rows `loop` and `loop_constant`: the real Trainer, with everything that a run does except evaluation."""

import collections
import contextlib
import os
from statistics import mean

from train_lib.distribution.strategy import distribute
from train_lib.hooks import Hook
from train_lib.modes.benchmark.rows import refuse_diverged, wait_for_devices
from train_lib.records.terminal import ProgressBar
from train_lib.train import Trainer


class Meter(Hook):
    """Notes how long each part of the loop takes, and how much of the compiled loop's time is spent waiting for data."""

    def __init__(self):
        self.seconds = collections.defaultdict(list)  # {part: seconds of each call}
        self.trained = self.waited = 0.0

    def after_steps(self, run, report):
        self.trained += report.seconds
        self.waited += float(report.data_wait.sum())

    def after_part(self, run, part, seconds):
        self.seconds[part].append(seconds)

    def mean_seconds(self, part):
        """Mean seconds of one call of a part, without its first call, which also opens files."""
        return mean(self.seconds[part][1:] or self.seconds[part])


class LoopRow:
    """The real Trainer: input, compiled loop, train records, progress bar and checkpoints, as often as the run would have them.

    A round lasts seconds and an epoch minutes, so most rounds would contain no checkpoint and some would contain one. Instead,
    each round is charged with its share: the seconds of its checkpoints are taken out, and the mean cost of a checkpoint is
    spread over the steps between two.

    Attributes:
      wait_shares: for each round, the share of the compiled loop's time between asking for a batch and having it.
    """

    def __init__(self, bench):
        self._bench, run = bench, bench.run
        self.meter = Meter()
        with _unseen():
            self.trainer = Trainer(run, [self.meter], bench.clock)
            self.batches = run.training_batches()
            bar = next(index for index, hook in enumerate(self.trainer.hooks) if isinstance(hook, ProgressBar))
            self.trainer.hooks[bar] = ProgressBar(run, bench.clock, is_terminal=True)
        self.wait_shares = []
        self.every_steps = _cadence(run)
        bench.shared["loop"] = self

    def costs(self):
        """{part of the bookkeeping: mean seconds of one call}."""
        return {name: self.meter.mean_seconds(part)
                for name, part in (("checkpoint", "save"), ("record", "record"), ("display", "show"))}

    def warm_up(self):
        """Traces and compiles; returns images/s of the calls after the first. Also learns what records and checkpoints cost."""
        trainer, wanted = self.trainer, min(3, self._bench.config.device.steps_per_loop)
        with _unseen():
            for _ in range(3):
                trainer.advance(self.batches, trainer.state.step + 1)
                self._refuse_diverged()
                trainer.record()
                trainer.save(True)
            start = self._bench.clock()
            trainer.advance(self.batches, trainer.state.step + wanted)
            wait_for_devices()
        return self._bench.images_per_second(wanted, self._bench.clock() - start)

    def measure(self, num_steps, batches=None):
        """Images/s, with each step's share of a checkpoint. `batches` may replace the run's own."""
        trainer, meter, first = self.trainer, self.meter, self.trainer.state.step
        saved = sum(meter.seconds["save"])
        meter.trained = meter.waited = 0.0
        start = self._bench.clock()
        with _unseen():
            while trainer.state.step < first + num_steps:
                trainer.turn(batches or self.batches)
                self._refuse_diverged()
        wait_for_devices()
        seconds = self._bench.clock() - start - (sum(meter.seconds["save"]) - saved)
        self.wait_shares.append(meter.waited / meter.trained)
        done = trainer.state.step - first
        return self._bench.images_per_second(done, seconds + done * self.costs()["checkpoint"] / self.every_steps["checkpoint"])

    def _refuse_diverged(self):
        refuse_diverged(self._bench.config, not self.trainer.has_diverged())

    def traces(self):
        """How often the compiled loop was traced. More than once means that something compiles again and again."""
        return self.trainer.train_loop.experimental_get_tracing_count()

    def close(self):
        """Ends the progress bar."""
        with _unseen():
            self.trainer.tell("on_stop")


class ConstantLoopRow:
    """The row `loop` with one batch instead of the data: the same Trainer, compiled loop and bookkeeping.

    Attributes:
      wait_shares: as in LoopRow; here it is the cost of asking for a batch that is always ready.
    """

    def __init__(self, bench):
        self._is_alone = "loop" not in bench.shared
        self._loop = LoopRow(bench) if self._is_alone else bench.shared["loop"]
        self.wait_shares = []
        self._batches = distribute(
            bench.run.strategy,
            lambda shard: bench.run.training_dataset(shard=shard).take(shard.local_replicas).cache().repeat())

    def warm_up(self):
        """Does what LoopRow.warm_up does, unless it was done already; returns images/s of some steps."""
        if self._is_alone:
            self._loop.warm_up()
        speed = self.measure(1)
        self.wait_shares.clear()
        return speed

    def measure(self, num_steps):
        """Images/s, counted like those of LoopRow."""
        speed = self._loop.measure(num_steps, self._batches)
        self.wait_shares.append(self._loop.wait_shares.pop())
        return speed

    def close(self):
        """Ends a loop of its own."""
        if self._is_alone:
            self._loop.close()


@contextlib.contextmanager
def _unseen():
    """Sends what the loop prints nowhere. Drawing still costs what it costs, but does not mix with the benchmark's own lines."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _cadence(run):
    """{part of the bookkeeping: steps between two calls}, according to the plan of the run."""
    horizon = min(run.plan.schedule_steps, 20_000)
    saves = sum(run.plan.checkpoint_due(step) for step in range(1, horizon + 1))
    return {
        "checkpoint": horizon / max(saves, 1),  # the last step is always saved
        "record": run.config.cadence.log_every_steps,
        "display": run.config.device.steps_per_loop,
    }
