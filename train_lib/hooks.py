"""The seam of the training loop: what a progress bar, a profile, pictures and a metrics writer have in common.

A hook is called at the moments that its methods name. To send metrics to another service, for example, subclass `Hook`, override
what you need, and add it to `train.standard_hooks` or pass it to `train.train`. An error in a hook ends the run, like any other
error in the loop. When hooks are made, the records of steps after the restored one have already been removed.
"""


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
        """An evaluation is done, or was due without a split: evaluation is an `evaluate.Evaluation`."""

    def after_part(self, run, part, seconds):
        """One part of the loop is done: "advance", "show", "record", "evaluate" or "save" took so many seconds."""

    def on_stop(self, run):
        """The loop has ended, by an error or without one."""

    def on_result(self, run, result):
        """The run is over: result is the content of result.json."""
