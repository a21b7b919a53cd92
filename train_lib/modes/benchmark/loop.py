"""The benchmark's rows `loop` and `loop_constant`: the real Trainer, with everything that a run does except evaluation."""

import collections
import contextlib
import os
from statistics import mean

from train_lib.distribution.strategy import distribute
from train_lib.hooks import Hook
from train_lib.modes.benchmark.rows import Row, refuse_diverged, wait_for_devices
from train_lib.records.terminal import ProgressBar
from train_lib.train import Trainer


@contextlib.contextmanager
def _unseen():
    """Sends what the loop prints nowhere. Drawing still costs what it costs, but does not mix with the benchmark's own lines."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


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


class LoopRow(Row):
    """The real Trainer: input, compiled loop, train records, progress bar and checkpoints, as often as the run would have them.

    A round lasts seconds and an epoch minutes, so most rounds would contain no checkpoint and some would contain one. Instead,
    each round is charged with its share: the seconds of its checkpoints are taken out, and the mean cost of a checkpoint is
    spread over the steps between two.

    "loop_constant" has one batch instead of the data, and the same Trainer, which is compiled once for both.

    `wait_shares` has for each round the share of the compiled loop's time between asking for a batch and having it. With a
    constant batch, this is the cost of asking for a batch that is always ready.
    """

    @_unseen()
    def __init__(self, bench, name):
        super().__init__(bench)
        run, self.wait_shares = bench.run, []
        if "trainer" not in bench.shared:
            meter, bar = Meter(), ProgressBar(run, bench.clock, is_terminal=True)
            # Not the standard hooks: a user's metrics writer must not get the benchmark's records.
            bench.shared["trainer"] = Trainer(run, [bar, meter], bench.clock), meter
        self._trainer, self._meter = bench.shared["trainer"]
        self._batches = run.training_batches() if name == "loop" else distribute(
            run.strategy, lambda shard: run.training_dataset(shard=shard).take(shard.local_replicas).cache().repeat())
        horizon = min(run.plan.schedule_steps, 20_000)
        saves = sum(run.plan.checkpoint_due(step) for step in range(1, horizon + 1))
        # {part of the bookkeeping: steps between two calls}. The last step of a run is always saved.
        self.every_steps = {"checkpoint": horizon / max(saves, 1), "record": run.config.cadence.log_every_steps,
                            "display": run.config.device.steps_per_loop}

    def costs(self):
        """{part of the bookkeeping: mean seconds of one call}, without the first call, which also opens files."""
        seconds, parts = self._meter.seconds, {"checkpoint": "save", "record": "record", "display": "show"}
        return {name: mean(seconds[part][1:] or seconds[part]) for name, part in parts.items()}

    @_unseen()
    def warm_up(self):
        """Also learns what records and checkpoints cost."""
        for _ in range(3):
            self._advance(1)
            self._trainer.record()
            self._trainer.save(True)
        start, wanted = self._bench.clock(), min(3, self._bench.config.device.steps_per_loop)
        self._advance(wanted)
        wait_for_devices()
        return wanted * self._bench.batch_size / (self._bench.clock() - start)

    def _advance(self, num_steps):
        self._trainer.advance(self._batches, self._trainer.state.step + num_steps)
        refuse_diverged(self._bench.config, self._trainer.has_diverged())

    @_unseen()
    def _take(self, num_steps):
        trainer, meter, first = self._trainer, self._meter, self._trainer.state.step
        saved, meter.trained, meter.waited = sum(meter.seconds["save"]), 0.0, 0.0
        start = self._bench.clock()
        while trainer.state.step < first + num_steps:
            trainer.turn(self._batches)
            refuse_diverged(self._bench.config, trainer.has_diverged())
        wait_for_devices()
        seconds = self._bench.clock() - start - (sum(meter.seconds["save"]) - saved)
        self.wait_shares.append(meter.waited / meter.trained)
        done = trainer.state.step - first
        return done, seconds + done * self.costs()["checkpoint"] / self.every_steps["checkpoint"]

    def traces(self):
        """How often the compiled loop was traced. More than once means that something compiles again and again."""
        return self._trainer.train_loop.experimental_get_tracing_count()

    @_unseen()
    def close(self):
        self._trainer.tell("on_stop")
