"""The story of a training run, from top to bottom. To change the mathematics, open `steps.py`.

    open      data, network and optimizer, and the checkpoint to go on from (`setup.py`, `checkpoints/resume.py`)
    loop      advance, record, evaluate, save; until the run has a status
    conclude  evaluate the test split with the best weights, write result.json, say where everything is
"""

import dataclasses
import functools
import sys
import time

from input_pipeline.common.errors import UnusableError
from train_lib import schedules
from train_lib.checkpoints.resume import is_finished, refuse_other_experiment
from train_lib.checkpoints.store import CheckpointStore
from train_lib.cli.failures import explained
from train_lib.cli.signals import stop_request
from train_lib.distribution.strategy import describe
from train_lib.distribution.workers import check_common_ground, check_same_step, join
from train_lib.evaluate import Evaluation, SplitEvaluator, evaluate_weights, make_eval_step
from train_lib.inner_loop import make_train_loop, run_steps
from train_lib.records.pictures import Pictures
from train_lib.records.profiling import Profile
from train_lib.records.run_log import RunLog, Stopwatch, describe_divergence
from train_lib.records.terminal import ProgressBar, closing_lines, parameter_table, quiet_unless, say
from train_lib.records.workdir import RESULT
from train_lib.setup import open_run, restore_best

EXIT_CODES = {"completed": 0, "early_stopped": 0, "diverged": 4, "preempted": 75}


def train(config, workdir, cluster=None, hooks=()):
    """The mode `train`: runs or resumes an experiment in a Workdir. Returns the exit code, the same on every worker.

    `cluster` is the Cluster whose workers train together, None for this machine alone. `hooks` come after `standard_hooks`.
    """
    with join(cluster) as workers, quiet_unless(workers.is_chief):
        check_common_ground(workers, config, workdir)
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
                try:
                    return Trainer(run, [*standard_hooks(run, time.monotonic), *hooks]).train()
                finally:  # also if there was one bad example too many
                    run.list_bad_examples()


def standard_hooks(run, clock):
    """The hooks of every run. Add your own here, or pass them to `train`."""
    return [ProgressBar(run, clock), Profile(run), Pictures(run)]


def timed(method):
    """Tells the hooks how many seconds a method of the Trainer took, under the method's name."""

    @functools.wraps(method)
    def measured(self, *arguments):
        start = self.clock()
        result = method(self, *arguments)
        self.tell("after_part", method.__name__, self.clock() - start)
        return result

    return measured


class Trainer:
    """Trains an open Run with hooks, by default `standard_hooks`. `clock` returns monotonic seconds."""

    def __init__(self, run, hooks=None, clock=time.monotonic):
        self.run, self.config, self.state, self.plan, self.clock = run, run.config, run.state, run.plan, clock
        self.train_loop = make_train_loop(run.strategy, run.state, run.config)
        self.eval_step = make_eval_step(run.strategy, run.state)
        self.validation = self.make_evaluator(run.validation_split) if run.validation_split else None
        self.log = RunLog(run.workdir, run.state.step, say, run.state.last_records(run.state.step < run.plan.last_step))
        self.hooks = standard_hooks(run, clock) if hooks is None else hooks
        self.stopwatch = Stopwatch(clock)
        self.stopping = False  # whether any worker was asked to stop, as all of them know it
        self.newest_report, self.before = None, run.state.validation.copy_of_best()
        self.status = self.find_status()

    def train(self):
        """The story of a run. Returns its exit code."""
        self.announce()
        batches = self.run.training_batches(self.state.step)
        try:
            self.tell("on_start")
            while self.status is None:
                self.turn(batches)
        finally:
            self.tell("on_stop")
        return self.conclude()

    def announce(self):
        """Writes down what is about to be done, and prints it."""
        self.run.write_down()
        print(parameter_table(self.state.model))
        verb, step = "resuming at" if self.state.step else "starting at", self.state.step
        print(f"{verb} step {step} of {self.plan.last_step} on {describe(self.run.strategy)}: {self.run.workdir.path}")

    def turn(self, batches):
        """Some steps, and then whatever is due: a train record, an evaluation, a checkpoint."""
        if not self.state.evaluation_owed:
            self.advance(batches)
            if self.plan.log_due(self.state.step):
                self.record()
            self.state.evaluation_owed = self.plan.evaluation_due(self.state.step)
        is_best = self.evaluate() if self.state.evaluation_owed else False
        # Read the status once: a signal between two reads could end the run unsaved.
        self.status = self.find_status()
        if is_best or self.plan.checkpoint_due(self.state.step) or self.status:
            self.save(is_best)
            self.status = self.find_status()

    def find_status(self):
        """How the run has ended, or None while it goes on."""
        if self.has_diverged():
            return "diverged"
        if not self.state.evaluation_owed and self.state.validation.out_of_patience(self.config):
            return "early_stopped"
        if not self.state.evaluation_owed and self.state.step >= self.plan.last_step:
            return "completed"
        # Of several workers, each hears only of its own signals. They stop where `stop_asked` has told all of them.
        asked = stop_request.received if self.run.workers.is_alone else self.stopping
        return "preempted" if asked else None

    def has_diverged(self):
        """Whether more updates in a row were skipped than --max_nonfinite_steps tolerates."""
        return self.state.skipped_in_a_row > self.config.optimization.max_nonfinite_steps

    def stop_asked(self):
        """Whether any worker was asked to stop. All workers must call this together."""
        self.stopping = any(self.run.workers.gather(stop_request.received is not None))
        return self.stopping

    @timed
    def advance(self, batches, stop=None):
        """Trains up to step `stop`, by default the next event, in one call of the compiled loop."""
        first, stop = self.state.step, stop or self.plan.next_stop(self.state.step)
        self.tell("before_steps")
        report = run_steps(
            self.train_loop, batches, self.state, [self.learning_rate(step) for step in range(first, stop)],
            self.lookahead_shares(first, stop), self.config.device.steps_per_loop, self.clock)
        self.state.advance(report)
        self.newest_report = report
        self.stop_asked()
        images = report.num_steps * self.config.optimization.global_batch_size
        self.stopwatch.add_training(report.seconds, images, float(report.data_wait.sum()))
        if self.state.step != stop and not self.has_diverged():
            raise AssertionError(f"the loop had to go from step {first} to {stop} and stopped at {self.state.step}")
        self.show(dataclasses.replace(report, images_per_second=self.stopwatch.images_per_second))

    @timed
    def show(self, report):
        """Lets the hooks see the steps that are done."""
        self.tell("after_steps", report)

    def learning_rate(self, step):
        """The learning rate of a step."""
        drops = self.state.validation.plateau_drops
        return schedules.learning_rate(step, self.config, self.plan.schedule_steps, self.plan.epoch_steps, drops)

    def lookahead_shares(self, first, stop):
        """The share by which Lookahead moves after each step from `first` up to `stop`; None without --lookahead_steps."""
        if not self.state.looks_ahead:
            return None
        return [schedules.lookahead_share(step, self.config, self.plan.schedule_steps) for step in range(first, stop)]

    @timed
    def record(self):
        """Writes the train record of the steps since the last one."""
        step, values = self.state.step, self.state.record_values()
        values["learning_rate"] = self.learning_rate(step - 1)
        if self.state.loss_scale:
            values["loss_scale"] = float(self.state.loss_scale.value.numpy())
        self.add_record("train", step, values)
        self.log.add_timing(step, self.stopwatch.lap())
        if not self.plan.log.is_due(step):
            self.state.keep_uncut("totals")
        self.state.start_record()

    def add_record(self, kind, step, values):
        """Appends a record to metrics.jsonl and shows it to the hooks."""
        epoch = self.plan.epoch(step)
        self.log.add_metrics(kind, step, epoch, values)
        self.tell("on_record", {"kind": kind, "step": step, "epoch": epoch, **values})

    @timed
    def evaluate(self):
        """Evaluates the validation split. Returns whether it is the best so far.

        If the run is asked to stop before the end, the evaluation stays owed: the run that goes on from here does it.
        """
        step, tracker, values, is_best = self.state.step, self.state.validation, None, True
        self.before = tracker.copy_of_best()
        if self.validation:
            values = evaluate_weights(self.validation, self.state, self.stop_asked)
            if values is None:
                return False
            if not self.plan.evaluate.is_due(step):
                self.state.keep_uncut("judgement")
            is_best = tracker.observe(values, step, self.config)
            self.add_record("validation", step, values)
        else:
            tracker.best_step = step
        self.state.evaluation_owed = False
        self.tell("after_evaluation", Evaluation("validation", step, values, is_best, self.validation))
        return is_best

    @timed
    def save(self, is_best):
        """Saves a checkpoint. If that fails, logs it and retries at the next one. A failed final save is an error."""
        reason = self.run.save(is_best, self.log)
        if reason is None:
            return
        if self.find_status():
            remedy = "make room and start the same command again"
            raise UnusableError(f"{self.run.store.folder}: the last checkpoint cannot be saved ({reason}); {remedy}")
        if is_best:  # `best` can only name a checkpoint that exists
            self.state.validation.restore_best(self.before)
        say(f"{self.run.store.folder}: no checkpoint at step {self.state.step} ({reason}); going on")

    def conclude(self):
        """Evaluates the test split with the best weights, writes result.json and says where everything is."""
        status, test_accuracy = self.status, None
        if EXIT_CODES[status] == 0:
            finished, test_accuracy = self.evaluate_test()
            status = status if finished else "preempted"
        self.log.flush()
        result = self.log.result(status, self.state, self.plan, test_accuracy, self.stopwatch)
        if status == "diverged":
            newest = {name: float(self.newest_report.metrics[name][-1]) for name in ("loss", "gradient_norm")}
            result["diverged"] = describe_divergence(self.run, **newest)
        self.run.workdir.write_json(RESULT, result)
        self.tell("on_result", result)
        for line in closing_lines(self.run.workdir.path, result):
            print(line, file=sys.stderr if EXIT_CODES[status] else sys.stdout)
        return EXIT_CODES[status]

    def evaluate_test(self):
        """Evaluates the test split with the best checkpoint, whose weights stay in the network.

        Returns whether it was done to its end, and the accuracy, which is None without a test split.
        """
        best_step, split_name = restore_best(self.run), self.config.data.test_split
        if not split_name:
            self.tell("after_evaluation", Evaluation("test", best_step, None, True, None))
            return True, None
        same = split_name == self.config.data.validation_split
        try:
            with explained(self.config, self.run.workers):
                split = self.run.validation_split if same else self.run.open_test_split()
                evaluator = self.make_evaluator(split, self.config.modes.test_crops)
                totals = evaluator.evaluate(self.stop_asked)
        except UnusableError as error:
            remedy = "the training is complete and saved; once this is mended, the same command does the rest"
            raise UnusableError(f"{error}; {remedy}") from None
        if totals is None:
            return False, None
        values = totals.summary()
        self.tell("after_evaluation", Evaluation("test", best_step, values, True, evaluator))
        self.add_record("test", best_step, values)
        return True, values["accuracy"]

    def make_evaluator(self, split, test_crops=1):
        """A SplitEvaluator for a split."""
        run = self.run
        step = self.eval_step if test_crops == 1 else make_eval_step(run.strategy, run.state, test_crops)
        batch_size = self.config.optimization.global_batch_size
        return SplitEvaluator(run.strategy, step, split, len(run.source.class_names), batch_size, run.workers, test_crops)

    def tell(self, moment, *arguments):
        """Calls a method of all hooks."""
        for hook in self.hooks:
            getattr(hook, moment)(self.run, *arguments)
