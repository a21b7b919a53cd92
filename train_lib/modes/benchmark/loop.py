"""The benchmark's rows `loop` and `loop_constant`: the real Trainer, with everything that a run does except evaluation."""

import collections
import contextlib
import os
from statistics import mean

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
    spread over the steps between two. "loop_constant" has one batch instead of the data, and the same Trainer, which is compiled
    once for both.

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
        self._batches = run.training_batches(make_batches=None if name == "loop" else (
            lambda shard: run.training_dataset(shard=shard).take(shard.local_replicas).cache().repeat()))
        horizon = min(run.plan.schedule_steps, 20_000)
        saves = sum(run.plan.checkpoint_due(step) for step in range(1, horizon + 1))
        # {part of the bookkeeping: steps between two calls}. The last step of a run is always saved.
        self._every_steps = {"save": horizon / max(saves, 1), "record": run.config.cadence.log_every_steps,
                             "show": run.config.device.steps_per_loop}

    def _cost(self, part):
        """The mean seconds of one call of a part of the bookkeeping, without the first call, which also opens files."""
        return mean(self._meter.seconds[part][1:] or self._meter.seconds[part])

    def bookkeeping(self, seconds_per_step):
        """The "bookkeeping" of benchmark.json: the share of the loop's time that each part of its bookkeeping takes."""
        parts = {}
        for name, part in {"checkpoint": "save", "record": "record", "display": "show"}.items():
            cost, every_steps = self._cost(part), self._every_steps[part]
            parts[name] = {"seconds": cost, "every_steps": every_steps, "share": cost / every_steps / seconds_per_step}
        return {"share": sum(part["share"] for part in parts.values()), "seconds_per_step": seconds_per_step, "parts": parts}

    @_unseen()
    def warm_up(self):
        """Also learns what records and checkpoints cost."""
        trainer, last = self._trainer, min(3, self._bench.config.device.steps_per_loop)
        for num_steps in (1, 1, 1, last):
            start = self._bench.clock()
            trainer.advance(self._batches, trainer.state.step + num_steps)
            wait_for_devices()
            seconds = self._bench.clock() - start
            refuse_diverged(self._bench.config, trainer.has_diverged())
            trainer.record()
            trainer.save(True)
        return last * self._bench.batch_size / seconds

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
        return done, seconds + done * self._cost("save") / self._every_steps["save"]

    def traces(self):
        """How often the compiled loop was traced. More than once means that something compiles again and again."""
        return self._trainer.train_loop.experimental_get_tracing_count()

    @_unseen()
    def close(self):
        self._trainer.tell("on_stop")
