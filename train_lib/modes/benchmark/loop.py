"""The benchmark's rows `loop` and `loop_constant`: the real Trainer, with everything that a run does but evaluation."""

import contextlib
import os
from statistics import mean

from train_lib.distribution.strategy import distribute
from train_lib.modes.benchmark.rows import refuse_diverged, wait_for_devices
from train_lib.records.terminal import Terminal
from train_lib.train import Trainer


class LoopRow:
    """The real Trainer: input, compiled loop, train records, progress bar and checkpoints at the configured cadence.

    A round is seconds long and an epoch minutes, so that most rounds would contain no checkpoint and some one. Each round is
    charged with its share instead: the checkpoints' seconds are taken out and their mean is spread over the steps between two.

    Attributes:
      wait_shares: of each round, the share of the compiled loop's seconds that passed between asking for a batch and having it.
    """

    def __init__(self, bench):
        self._bench = bench
        self.trainer = Trainer(bench.run, bench.clock)
        self.seconds = {"checkpoint": [], "record": [], "display": []}  # of each call
        with _unseen():
            self.trainer.start()
            self.trainer.terminal = Terminal(bench.run.plan.schedule_steps, 0, bench.clock, is_terminal=True)
        self.wait_shares, self._trained, self._waited = [], 0.0, 0.0
        self.trainer.stopwatch.add_training = self._noting_waits(self.trainer.stopwatch.add_training)
        self.trainer.save = self._timed("checkpoint", self.trainer.save)
        self.trainer.write_train_record = self._timed("record", self.trainer.write_train_record)
        self.trainer.terminal.progress = self._timed("display", self.trainer.terminal.progress)
        self.every_steps = _cadence(bench.run)
        bench.shared["loop"] = self

    def _timed(self, part, function):
        def call(*arguments):
            start = self._bench.clock()
            result = function(*arguments)
            self.seconds[part].append(self._bench.clock() - start)
            return result

        return call

    def _noting_waits(self, function):
        def call(seconds, images, waited):
            self._trained += seconds
            self._waited += waited
            function(seconds, images, waited)

        return call

    def costs(self):
        """{part of the bookkeeping: mean seconds of one call}, but for the first call of each, which also opens files."""
        return {part: mean(seconds[1:] or seconds) for part, seconds in self.seconds.items()}

    def warm_up(self):
        """Traces and compiles; images/s of the calls after the first. Writes records and checkpoints, to know what they cost."""
        trainer = self.trainer
        with _unseen():
            for _ in range(3):
                trainer.advance(trainer.state.step + 1)
                self._refuse_diverged()
                trainer.write_train_record()
                trainer.save(True)
            start, wanted = self._bench.clock(), min(3, self._bench.config.device.steps_per_loop)
            trainer.advance(trainer.state.step + wanted)
            wait_for_devices()
        return self._bench.images_per_second(wanted, self._bench.clock() - start)

    def measure(self, num_steps):
        """Images/s, with each step's share of a checkpoint."""
        trainer, first, saved = self.trainer, self.trainer.state.step, sum(self.seconds["checkpoint"])
        self._trained = self._waited = 0.0
        start = self._bench.clock()
        with _unseen():
            while trainer.state.step < first + num_steps:
                trainer.turn()
                self._refuse_diverged()
        wait_for_devices()
        seconds = self._bench.clock() - start - (sum(self.seconds["checkpoint"]) - saved)
        self.wait_shares.append(self._waited / self._trained)
        done = trainer.state.step - first
        return self._bench.images_per_second(done, seconds + done * self.costs()["checkpoint"] / self.every_steps["checkpoint"])

    def _refuse_diverged(self):
        refuse_diverged(self._bench.config, not self.trainer.has_diverged())

    def traces(self):
        """How often the compiled loop was traced; more than once means that something compiles again and again."""
        return self.trainer.train_loop.experimental_get_tracing_count()

    def close(self):
        """Ends the progress bar."""
        with _unseen():
            self.trainer.terminal.close()


class ConstantLoopRow:
    """The row `loop` with one batch in place of the data: the same Trainer, compiled loop and bookkeeping.

    Attributes:
      wait_shares: as in LoopRow; what asking for a batch takes where it is always there.
    """

    def __init__(self, bench):
        self._bench, config, split = bench, bench.config, bench.run.train_split
        self._is_alone = "loop" not in bench.shared
        self._loop = LoopRow(bench) if self._is_alone else bench.shared["loop"]
        self.wait_shares = []

        def one_batch(shard):
            batches = split.training_batches(
                config.general.seed, 0, config.optimization.global_batch_size, config.data.augmentations, shard)
            return batches.take(shard.local_replicas).cache().repeat()

        self._iterator = distribute(bench.run.strategy, one_batch)

    def warm_up(self):
        """What LoopRow's does, where that was not done yet; images/s of some steps."""
        if self._is_alone:
            self._loop.warm_up()
        speed = self.measure(1)
        self.wait_shares.clear()
        return speed

    def measure(self, num_steps):
        """Images/s, as LoopRow counts them."""
        trainer = self._loop.trainer
        trainer.iterator, real = self._iterator, trainer.iterator
        try:
            speed = self._loop.measure(num_steps)
        finally:
            trainer.iterator = real
        self.wait_shares.append(self._loop.wait_shares.pop())
        return speed

    def close(self):
        """Ends a loop of its own."""
        if self._is_alone:
            self._loop.close()


@contextlib.contextmanager
def _unseen():
    """What the loop shows goes nowhere: drawing it costs what it costs, but it would stand between the benchmark's own lines."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _cadence(run):
    """{part of the bookkeeping: steps between two calls}, as the run's own plan has it."""
    horizon = min(run.plan.schedule_steps, 20_000)
    saves = sum(run.plan.checkpoint_due(step) for step in range(1, horizon + 1))
    return {
        "checkpoint": horizon / max(saves, 1),  # the last step is always saved
        "record": run.config.cadence.log_every_steps,
        "display": run.config.device.steps_per_loop,
    }
