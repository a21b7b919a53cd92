"""The training loop. Open this file to read the story, `steps.py` to change the mathematics."""

import contextlib
import dataclasses
import sys
import time

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib import schedules
from train_lib.checkpoints.same_run import is_finished, refuse_other_experiment
from train_lib.checkpoints.store import CheckpointStore
from train_lib.cli.failures import explained
from train_lib.cli.signals import stop_request
from train_lib.distribution.agreement import check_common_ground, check_same_step
from train_lib.distribution.strategy import describe, distribute
from train_lib.distribution.workers import join
from train_lib.evaluate import Interrupted, SplitEvaluator, evaluate_weights, make_eval_step
from train_lib.inner_loop import make_train_loop
from train_lib.records import divergence
from train_lib.records.pictures import Pictures
from train_lib.records.profiling import Profile
from train_lib.records.run_log import RunLog, Stopwatch
from train_lib.records.terminal import Terminal, closing_lines, evaluation_line, parameter_table, quiet_unless, say
from train_lib.records.workdir import RESULT
from train_lib.setup import open_run, restore_best
from train_lib.steps import METRICS

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
        with stop_request.finishing("saving and stopping after this call"):
            trainer = Trainer(run)
            run.write_down()
            print(parameter_table(run.state.model))
            verb = "resuming at" if run.state.step else "starting at"
            print(f"{verb} step {run.state.step} of {run.plan.last_step} on {describe(run.strategy)}: {workdir.path}")
            try:
                return trainer.train()
            finally:  # also when there was one bad example too many
                run.list_bad_examples()


class Trainer:
    """The loop and what it needs at hand.

    Args:
      run: an open Run.
      clock: seconds, monotonic.
    """

    def __init__(self, run, clock=time.monotonic):
        self.run, self.config, self.state, self.plan, self.clock = run, run.config, run.state, run.plan, clock
        self.train_loop = make_train_loop(run.strategy, run.state, run.config)
        self.eval_step = make_eval_step(run.strategy, run.state)
        self.validation = self.make_evaluator(run.validation_split) if run.validation_split else None
        self.log = RunLog(run.workdir, run.state.step, say, run.state.evaluation_owed)
        self.pictures = Pictures(run, lambda line: self.terminal.line(line))
        self.stopwatch = Stopwatch(clock)
        self.newest_record = self.best_before = None
        self.stopping = False

    def train(self):
        """The story of a run. Returns its exit code."""
        self.start()
        self.pictures.draw_batch()
        with self.profile:
            while self.ended is None:
                self.turn()
        self.terminal.close()
        return self.conclude(self.ended)

    def start(self):
        """Opens what only the loop needs: batches, the display and the profile."""
        self.ended = self.status()
        first_step, last_step = self.state.step, self.plan.last_step
        self.iterator = self.open_batches()
        is_chief = self.run.workers.is_chief
        self.terminal = Terminal(last_step, first_step, self.clock, None if is_chief else False)
        folder, steps = self.run.workdir.path / "tensorboard", self.config.device.profile_range() if is_chief else None
        self.profile = Profile(steps, folder, first_step, last_step, self.terminal.line)

    def turn(self):
        """One turn of the loop: some steps, and what is due after them."""
        if not self.state.evaluation_owed:
            self.advance(self.plan.next_stop(self.state.step))
            if self.plan.log_due(self.state.step):
                self.write_train_record()
            self.state.evaluation_owed = self.plan.evaluation_due(self.state.step)
        is_best = False
        if self.state.evaluation_owed:
            with contextlib.suppress(Interrupted):  # still owed then, by the run that goes on from here
                is_best = self.evaluate_validation()
        self.ended = self.status()  # asked once: a signal between two answers would end a run that is not saved
        if is_best or self.plan.checkpoint_due(self.state.step) or self.ended:
            self.save(is_best)
            self.ended = self.status()

    def status(self):
        """How the run has ended, None while it goes on."""
        if self.has_diverged():
            return "diverged"
        if not self.state.evaluation_owed and self.state.validation.out_of_patience(self.config):
            return "early_stopped"
        if not self.state.evaluation_owed and self.state.step >= self.plan.last_step:
            return "completed"
        # Several workers stop where the step says that one was asked to: each knows of its own signal alone.
        asked = stop_request.received if self.run.workers.is_alone else self.stopping
        return "preempted" if asked else None

    def asked_to_stop(self):
        """Whether a signal came, on any worker: one answer on all of them, which all ask for together."""
        self.stopping = any(self.run.workers.gather(stop_request.received is not None))
        return self.stopping

    def open_batches(self):
        """The endless iterator over training batches, from the present step on."""
        config, split = self.config, self.run.train_split
        return distribute(self.run.strategy, lambda shard: split.training_batches(
            config.general.seed, self.state.step, config.optimization.global_batch_size, config.data.augmentations, shard), split)

    def advance(self, stop):
        """Trains up to step `stop` in one call of the compiled loop."""
        first, size = self.state.step, self.config.device.steps_per_loop
        self.profile.begin_before(first)
        rates = np.zeros(size)
        rates[: stop - first] = [self.learning_rate(step) for step in range(first, stop)]
        start = self.clock()
        done, skipped, stopping, reports = self.train_loop(
            self.iterator, tf.constant(first, tf.int64), tf.constant(stop - first), tf.constant(rates),
            tf.constant(self.state.skipped_in_a_row), tf.constant(stop_request.received is not None))
        done, finite = int(done), reports["finite"].numpy()
        seconds, waited = self.clock() - start, float(reports["data_wait"].numpy()[:done].sum())
        self.stopwatch.add_training(seconds, done * self.config.optimization.global_batch_size, waited)
        self.newest_step = {name: float(reports[name][done - 1]) for name in ("loss", "gradient_norm")}
        self.state.totals.add({name: reports[name].numpy()[:done] for name in METRICS}, finite[:done])
        self.state.step += done
        self.state.skipped_in_a_row, self.stopping = int(skipped), bool(stopping)
        self.profile.end_after(self.state.step)
        if done != stop - first and not (self.stopping or self.has_diverged()):
            raise AssertionError(f"the loop was to do {stop - first} steps from {first} on and did {done}")
        shown = {**self.state.totals.means(), "learning_rate": rates[done - 1]}
        self.terminal.progress(self.state.step, shown, self.stopwatch.images_per_second)

    def learning_rate(self, step):
        """The learning rate of a step."""
        drops = self.state.validation.plateau_drops
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

    def evaluate_validation(self):
        """Evaluates the validation split, shows and records it; returns whether it is the best so far."""
        step, tracker, is_best = self.state.step, self.state.validation, True
        values = evaluate_weights(self.validation, self.state, self.asked_to_stop) if self.validation else None
        self.best_before = (dataclasses.replace(tracker.best), tracker.best_step)
        if values:
            is_best = tracker.observe(values, step, self.config)
            self.log.add_metrics("validation", step, self.plan.epoch(step), values)
        else:
            tracker.best_step = step
        self.state.evaluation_owed = False
        self.pictures.draw_evaluation(self.validation, is_best)
        train = self.newest_record or self.state.totals.means()
        epoch, epochs = self.plan.epoch(step), self.config.schedule.epochs
        self.terminal.line(evaluation_line(epoch, epochs, step, train, values, is_best))
        return is_best

    def save(self, is_best):
        """Saves a checkpoint. One that fails is said, and tried again when the next is due; the last one must not fail."""
        reason = self.run.save(is_best, self.log.flush)
        if reason is None:
            return
        if self.status():
            remedy = "make room and start the same command again"
            raise UnusableError(f"{self.run.store.folder}: the last checkpoint cannot be saved ({reason}); {remedy}")
        if is_best:  # the best is what `best` can name
            self.state.validation.best, self.state.validation.best_step = self.best_before
        self.terminal.line(f"{self.run.store.folder}: no checkpoint at step {self.state.step} ({reason}); going on")

    def conclude(self, status):
        """Judges the test split by the best checkpoint, writes result.json and says what is where; returns the exit code."""
        test_accuracy = None
        if EXIT_CODES[status] == 0:
            try:
                test_accuracy = self.evaluate_test()
            except Interrupted:
                status = "preempted"
        self.log.flush()
        result = self.log.result(status, self.state, self.plan, test_accuracy, self.stopwatch)
        if status == "diverged":
            result["diverged"] = divergence.describe(self.run, **self.newest_step)
        self.run.workdir.write_json(RESULT, result)
        for line in closing_lines(self.run.workdir.path, result):
            print(line, file=sys.stderr if EXIT_CODES[status] else sys.stdout)
        return EXIT_CODES[status]

    def evaluate_test(self):
        """The accuracy of the best checkpoint on the test split, None without one; leaves the best weights in the network."""
        best_step, split_name = restore_best(self.run), self.config.data.test_split
        if not split_name:
            self.pictures.draw_test(None, best_step)
            return None
        split = self.run.validation_split if split_name == self.config.data.validation_split else self.run.open_test_split()
        evaluator = self.make_evaluator(split, self.config.modes.test_crops)
        values = evaluator.evaluate(self.asked_to_stop).summary()
        self.pictures.draw_test(evaluator, best_step)
        self.log.add_metrics("test", best_step, self.plan.epoch(best_step), values)
        return values["accuracy"]

    def make_evaluator(self, split, test_crops=1):
        """A SplitEvaluator for a split."""
        step = self.eval_step if test_crops == 1 else make_eval_step(self.run.strategy, self.state, test_crops)
        return SplitEvaluator(
            self.run.strategy, step, split, len(self.run.source.class_names),
            self.config.optimization.global_batch_size, self.run.workers, test_crops)
