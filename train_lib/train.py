"""The training loop. Open this file to read the story, `steps.py` to change the mathematics."""

import dataclasses
import sys
import time

import numpy as np
import tensorflow as tf

from input_pipeline.errors import UnusableError
from train_lib import schedules
from train_lib.agreement import check_common_ground, check_same_step
from train_lib.checkpointing import CheckpointStore
from train_lib.evaluate import SplitJudge
from train_lib.failures import explained
from train_lib.profiling import Profile
from train_lib.run import is_finished, open_run, refuse_other_experiment, restore_best
from train_lib.signals import StopRequest
from train_lib.steps import make_eval_step, make_train_loop
from train_lib.strategy import describe, distribute
from train_lib.summaries import RunLog, Stopwatch, totals_of
from train_lib.terminal import Terminal, closing_lines, evaluation_line, parameter_table, quiet_unless
from train_lib.workdir import RESULT
from train_lib.workers import join

EXIT_CODES = {"completed": 0, "early_stopped": 0, "diverged": 4, "preempted": 75}


def train(config, workdir, cluster=None):
    """The mode `train`: runs, or resumes, an experiment in a Workdir, on the workers of a Cluster where one is given.

    Returns the exit code of `EXIT_CODES`, the same on every worker.
    """
    with join(cluster) as workers, quiet_unless(workers.is_chief):
        check_common_ground(workers, config, workdir)
        return train_together(config, workdir, workers)


def train_together(config, workdir, workers):
    """`train`, once the workers are connected."""
    store = CheckpointStore(workdir.checkpoints, config.cadence.keep_checkpoints)
    workers.from_chief(store.remove_leftovers)
    checkpoint = store.newest()
    check_same_step(workers, workdir, checkpoint)
    refuse_other_experiment(config, checkpoint)
    if is_finished(config, checkpoint, workers.from_chief(workdir.read_result)):
        print(f"{workdir.path}: finished at step {checkpoint.step}; give a larger --epochs or --max_steps to go on")
        return 0
    with explained(config, workers):
        run = open_run(config, workdir, checkpoint, store, workers=workers)
        trainer = Trainer(run)  # reads the records, and refuses damaged ones before anything is replaced
        workdir.remove_result()
        workdir.write_config(config)
        print(parameter_table(run.state.model))
        verb = "resuming at" if run.state.step else "starting at"
        print(f"{verb} step {run.state.step} of {run.plan.last_step} on {describe(run.strategy)}: {workdir.path}")
        try:
            return trainer.train()
        finally:  # also when there was one too many
            run.list_bad_examples()


class Trainer:
    """The loop and what it needs at hand.

    Args:
      run: an open Run.
      clock: seconds, monotonic.
    """

    def __init__(self, run, clock=time.monotonic):
        self.run, self.config, self.state, self.plan = run, run.config, run.state, run.plan
        self.clock = clock
        self.train_loop = make_train_loop(run.strategy, run.state, run.config)
        self.eval_step = make_eval_step(run.strategy, run.state)
        self.validation = self.make_judge(run.validation_split) if run.validation_split else None
        self.log = RunLog(run.workdir, run.state.step)
        self.stopwatch = Stopwatch(clock)
        self.newest_record = None
        self.best_before = None
        self.stopping = False

    def train(self):
        """The story of a run. Returns its exit code."""
        self.start()
        with self.stop_request, self.profile:
            while self.status() is None:
                self.turn()
        self.terminal.close()
        return self.conclude(self.status())

    def start(self):
        """Opens what only the loop needs: batches, the display, the profile and the ear for signals."""
        first_step, last_step = self.state.step, self.plan.last_step
        self.iterator = self.open_batches()
        is_chief = self.run.workers.is_chief
        self.terminal = Terminal(last_step, first_step, self.clock, None if is_chief else False)
        self.stop_request = StopRequest()
        folder, steps = self.run.workdir.path / "tensorboard", self.config.device.profile_range() if is_chief else None
        self.profile = Profile(steps, folder, first_step, last_step, self.terminal.line)

    def turn(self):
        """One turn of the loop: some steps, and what is due after them."""
        self.profile.begin_before(self.state.step)
        self.advance(self.plan.next_stop(self.state.step))
        step = self.state.step
        self.profile.end_after(step)
        if self.plan.log_due(step):
            self.write_train_record()
        is_best = self.plan.evaluation_due(step) and self.judge_validation()
        if self.plan.checkpoint_due(step) or self.status():
            self.save(is_best)

    def status(self):
        """How the run has ended, None while it goes on."""
        if self.has_diverged():
            return "diverged"
        if self.state.judgement.out_of_patience(self.config):
            return "early_stopped"
        if self.state.step >= self.plan.last_step:
            return "completed"
        # Several workers stop where the step says that one was asked to: each knows of its own signal alone.
        asked = self.stop_request.received if self.run.workers.is_alone else self.stopping
        return "preempted" if asked else None

    def open_batches(self):
        """The endless iterator over training batches, from the present step on."""
        config, split = self.config, self.run.train_split
        return distribute(self.run.strategy, lambda shard: split.training_batches(
            config.run.seed, self.state.step, config.optimization.global_batch_size, config.data.augmentations, shard), split)

    def advance(self, stop):
        """Trains up to step `stop` in one call of the compiled loop."""
        first, size = self.state.step, self.config.device.steps_per_loop
        rates = np.zeros(size)
        rates[: stop - first] = [self.learning_rate(step) for step in range(first, stop)]
        start = self.clock()
        done, skipped, stopping, reports = self.train_loop(
            self.iterator, tf.constant(first, tf.int64), tf.constant(stop - first), tf.constant(rates),
            tf.constant(self.state.skipped_in_a_row), tf.constant(self.stop_request.received is not None))
        done, finite = int(done), reports["finite"].numpy()
        seconds, waited = self.clock() - start, float(reports["data_wait"].numpy()[:done].sum())
        self.stopwatch.add_training(seconds, done * self.config.optimization.global_batch_size, waited)
        losses, accuracies = reports["loss"].numpy()[:done], reports["accuracy"].numpy()[:done]
        self.state.totals.add(losses, accuracies, finite[:done])
        self.state.step += done
        self.state.skipped_in_a_row, self.stopping = int(skipped), bool(stopping)
        if done != stop - first and not (self.stopping or self.has_diverged()):
            raise AssertionError(f"the loop was to do {stop - first} steps from {first} on and did {done}")
        shown = {**self.state.totals.means(), "learning_rate": rates[done - 1]}
        self.terminal.progress(self.state.step, shown, self.stopwatch.images_per_second)

    def learning_rate(self, step):
        """The learning rate of a step."""
        drops = self.state.judgement.plateau_drops
        return schedules.learning_rate(step, self.config, self.plan.schedule_steps, self.plan.epoch_steps, drops)

    def has_diverged(self):
        """Whether more updates in a row were skipped than tolerated."""
        return self.state.skipped_in_a_row > self.config.optimization.max_nonfinite_steps

    def write_train_record(self):
        """Ends the train record under way."""
        step, means = self.state.step, self.state.totals.means()
        self.newest_record = {**means, "learning_rate": self.learning_rate(step - 1)}
        if self.state.loss_scale:
            self.newest_record["loss_scale"] = float(self.state.loss_scale.value.numpy())
        self.log.add_metrics("train", step, self.plan.epoch(step), self.newest_record)
        self.log.add_timing(step, self.stopwatch.lap())
        self.state.totals = type(self.state.totals)()

    def judge_validation(self):
        """Evaluates the validation split, shows and records it; returns whether it is the best so far."""
        step, values, is_best = self.state.step, None, True
        if self.validation:
            values = self.judge_weights()
            self.best_before = (dataclasses.replace(self.state.judgement.best), self.state.judgement.best_step)
            is_best = self.state.judgement.observe(values, step, self.config)
            self.log.add_metrics("validation", step, self.plan.epoch(step), values)
        train = self.newest_record or self.state.totals.means()
        epoch, epochs = self.plan.epoch(step), self.config.schedule.epochs
        self.terminal.line(evaluation_line(epoch, epochs, step, train, values, is_best))
        return is_best

    def judge_weights(self):
        """The validation values; where weights are averaged, those of the averages, and the weights' own as "raw_..."."""
        raw = self.validation.judge().summary()
        if not self.state.averages:
            return raw
        with self.state.averages_in_place():
            averaged = self.validation.judge().summary()
        return averaged | {f"raw_{name}": raw[name] for name in ("loss", "accuracy")}

    def save(self, is_best):
        """Saves a checkpoint. One that fails is said, and tried again when the next is due; the last one must not fail."""
        self.log.flush()
        reason = self.run.save(is_best)
        if reason is None:
            return
        if self.status():
            remedy = "make room and start the same command again"
            raise UnusableError(f"{self.run.store.folder}: the last checkpoint cannot be saved ({reason}); {remedy}")
        if is_best and self.best_before:  # the best is what `best` can name
            self.state.judgement.best, self.state.judgement.best_step = self.best_before
        self.terminal.line(f"{self.run.store.folder}: no checkpoint at step {self.state.step} ({reason}); going on")

    def conclude(self, status):
        """Judges the test split by the best checkpoint, writes result.json and says what is where; returns the exit code."""
        test_accuracy = None
        if EXIT_CODES[status] == 0:
            test_accuracy = self.judge_test()
        result = self.result(status, test_accuracy)
        self.log.flush()
        self.run.workdir.write_json(RESULT, result)
        for line in closing_lines(self.run.workdir.path, result):
            print(line, file=sys.stderr if EXIT_CODES[status] else sys.stdout)
        return EXIT_CODES[status]

    def judge_test(self):
        """The accuracy of the best checkpoint on the test split, None without one; leaves the best weights in the network."""
        best_step, split_name = restore_best(self.run), self.config.data.test_split
        if not split_name:
            return None
        split = self.run.validation_split if split_name == self.config.data.validation_split else self.run.open_test_split()
        values = self.make_judge(split, self.config.judge.test_crops).judge().summary()
        self.log.add_metrics("test", best_step, self.plan.epoch(best_step), values)
        return values["accuracy"]

    def make_judge(self, split, test_crops=1):
        """A SplitJudge for a split."""
        step = self.eval_step if test_crops == 1 else make_eval_step(self.run.strategy, self.state, test_crops)
        return SplitJudge(
            self.run.strategy, step, split, len(self.run.source.class_names),
            self.config.optimization.global_batch_size, self.run.workers, test_crops)

    def result(self, status, test_accuracy):
        """The content of result.json."""
        best_step = self.state.judgement.best_step
        records = self.log.metrics.read()
        best = [r["accuracy"] for r in records if r["kind"] == "validation" and r["step"] == best_step]
        return {
            "status": status,
            "steps": self.state.step,
            "epochs": self.plan.epoch(self.state.step),
            "best_step": best_step,
            "best_validation_accuracy": best[-1] if best else None,
            "test_accuracy": test_accuracy,
            **totals_of([*self.log.timing.read(), self.stopwatch.lap()]),
        }
