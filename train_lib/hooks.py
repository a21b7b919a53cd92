"""What happens beside training: the progress bar, profiles, pictures, and whatever you add.

A hook is called at the moments that its methods name. To send metrics to another service, for example, subclass `Hook`, override
what you need, and add it to `standard_hooks` or pass it to `train.train`.
"""

from train_lib.records.pictures import Pictures
from train_lib.records.profiling import Profile
from train_lib.records.terminal import Terminal, evaluation_line, say


class Hook:
    """Does nothing at any moment of a run. `run` is always the open `setup.Run`, whose `state` is that of the moment.

    On several machines, every worker has its hooks. Check `run.workers.is_chief` before you write something that is needed once.
    """

    def on_start(self, run):
        """The run is open, and the first step of this process comes next."""

    def before_steps(self, run):
        """A call of the compiled loop comes next."""

    def after_steps(self, run, report):
        """A call of the compiled loop has returned: report is an `inner_loop.StepsReport`."""

    def on_record(self, run, record):
        """A record has been written: a dict like a line of metrics.jsonl, of kind "train", "validation" or "test"."""

    def after_evaluation(self, run, evaluation):
        """A split has been evaluated: evaluation is an `evaluate.Evaluation`."""

    def after_part(self, run, part, seconds):
        """One part of the loop is done: "advance", "show", "record", "evaluate" or "save" took so many seconds."""

    def on_stop(self, run):
        """The loop has ended, also if it was by an error."""

    def on_result(self, run, result):
        """The run is over: result is the content of result.json."""


def standard_hooks(run, clock):
    """The hooks of every run."""
    return [ProgressBar(run, clock), Profiler(run), PictureBook(run)]


class ProgressBar(Hook):
    """A progress bar on a terminal, plain lines elsewhere, and one line per evaluation in both."""

    def __init__(self, run, clock, is_terminal=None):
        is_terminal = is_terminal if run.workers.is_chief else False
        self._terminal = Terminal(run.plan.last_step, run.state.step, clock, is_terminal)
        self._train = None  # the newest train record

    def after_steps(self, run, report):
        values = {**run.state.record_values(), "learning_rate": report.learning_rates[-1]}
        self._terminal.progress(run.state.step, values, report.images_per_second)

    def on_record(self, run, record):
        if record["kind"] == "train":
            self._train = record

    def after_evaluation(self, run, evaluation):
        if evaluation.kind == "validation":
            step, epochs = run.state.step, run.config.schedule.epochs
            train = self._train or run.state.record_values()
            say(evaluation_line(run.plan.epoch(step), epochs, step, train, evaluation.values, evaluation.is_best))

    def on_stop(self, run):
        self._terminal.close()


class Profiler(Hook):
    """--profile_steps: a TensorBoard trace of some steps."""

    def __init__(self, run):
        steps = run.config.device.profile_range() if run.workers.is_chief else None
        self._profile = Profile(steps, run.workdir.path / "tensorboard", run.state.step, run.plan.last_step, say)

    def before_steps(self, run):
        self._profile.begin_before(run.state.step)

    def after_steps(self, run, report):
        self._profile.end_after(run.state.step)

    def on_stop(self, run):
        self._profile.close()


class PictureBook(Hook):
    """The pictures of a run: an augmented batch, the first kernels, the confusion matrix, the worst mistakes."""

    def __init__(self, run):
        self._pictures = Pictures(run, say)

    def on_start(self, run):
        self._pictures.draw_batch()

    def after_evaluation(self, run, evaluation):
        if evaluation.kind == "validation":
            self._pictures.draw_evaluation(evaluation.evaluator, evaluation.is_best)
        else:
            self._pictures.draw_test(evaluation.evaluator, evaluation.step)
