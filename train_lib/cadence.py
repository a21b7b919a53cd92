"""When something is due, and when to stop early.

`Every` is the one rule for logs, evaluations and checkpoints. `Plan` says how far one call of the compiled loop may go before the
host has something to do. `ValidationTracker` keeps the best metric, early stopping's patience and the plateau schedule.
"""

import dataclasses
import math
from fractions import Fraction

PLATEAU_PATIENCE = 5  # evaluations
PLATEAU_MAX_DROPS = 3  # paper, section 5


@dataclasses.dataclass(frozen=True)
class Every:
    """Due after every `period` steps; a fractional period (an epoch of 390.625 steps) is due at the step that completes it."""

    period: Fraction

    def next_due(self, step):
        """The first step after `step` at which this is due."""
        return math.ceil((math.floor(step / self.period) + 1) * self.period)

    def is_due(self, step):
        """Whether this is due once `step` steps are done."""
        return step > 0 and self.next_due(step - 1) == step


@dataclasses.dataclass(frozen=True)
class Plan:
    """All events of a run, counted in steps done. A resumed run has the same plan, so everything fires at the same steps."""

    epoch_steps: Fraction  # steps in an epoch
    schedule_steps: int  # steps in --epochs; the learning rate schedule spans them
    last_step: int  # the step after which training ends at the latest
    log: Every
    evaluate: Every
    checkpoints: tuple  # of Every
    steps_per_loop: int  # at most so many steps in one call of the compiled loop
    profile: tuple = ()  # the steps at which a profile starts and stops; empty if there is none

    def next_stop(self, step):
        """The step at which the next call of the compiled loop, from `step` on, has to return."""
        events = (self.log, self.evaluate, *self.checkpoints)
        profile = (border for border in self.profile if border > step)
        return min(step + self.steps_per_loop, self.last_step, *(event.next_due(step) for event in events), *profile)

    def log_due(self, step):
        """Whether a train record ends at `step`."""
        return self.log.is_due(step) or step == self.last_step

    def evaluation_due(self, step):
        """Whether the validation split is evaluated after `step`."""
        return self.evaluate.is_due(step) or step == self.last_step

    def checkpoint_due(self, step):
        """Whether the state after `step` is saved: at the chosen steps, and after each evaluation, since it may be the best."""
        return self.evaluation_due(step) or any(every.is_due(step) for every in self.checkpoints)

    def epoch(self, step):
        """The number of epochs in `step` steps, a float."""
        return float(step / self.epoch_steps)


def make_plan(config, num_examples):
    """The Plan for the epochs and steps of an ExperimentConfig, on a training split of `num_examples`."""
    epoch_steps = Fraction(num_examples, config.optimization.global_batch_size)
    schedule_steps = max(1, math.ceil(_decimal(config.schedule.epochs) * epoch_steps))
    last_step = min(schedule_steps, config.schedule.max_steps or schedule_steps)
    every_steps = config.cadence.checkpoint_every_steps
    return Plan(
        epoch_steps=epoch_steps,
        schedule_steps=schedule_steps,
        last_step=last_step,
        log=Every(Fraction(config.cadence.log_every_steps)),
        evaluate=Every(_decimal(config.cadence.eval_every_epochs) * epoch_steps),
        checkpoints=(Every(epoch_steps),) + ((Every(Fraction(every_steps)),) if every_steps else ()),
        steps_per_loop=config.device.steps_per_loop,
        profile=config.device.profile_range() or (),
    )


def _decimal(number):
    """The number as it was typed. 0.1 means 1/10: the nearest float is a little larger and would add a step to many epochs."""
    return Fraction(str(number))


@dataclasses.dataclass
class Patience:
    """Counts the evaluations without an improvement."""

    best: float | None = None  # the value that the next one must beat; None before the first evaluation
    waited: int = 0  # evaluations since `best` was reached

    def observe(self, value, lower_is_better, min_delta=0.0):
        """Takes one value and returns whether it improved by more than `min_delta`. NaN never does."""
        gain = math.inf if self.best is None else (self.best - value if lower_is_better else value - self.best)
        if gain > min_delta and not math.isnan(value):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False


@dataclasses.dataclass
class ValidationTracker:
    """The history of the validation metric as far as a run needs it. It is saved with every checkpoint."""

    best: Patience = dataclasses.field(default_factory=Patience)  # any improvement counts, however small
    # The step of the best value names the best checkpoint. If no value is a number, the first evaluation is the best.
    best_step: int | None = None
    stopping: Patience = dataclasses.field(default_factory=Patience)  # of early stopping; ignores gains up to its min_delta
    plateau: Patience = dataclasses.field(default_factory=Patience)  # of the plateau schedule
    plateau_drops: int = 0  # how often the plateau schedule has divided the learning rate by 10
    step: int | None = None  # of the newest value; None before the first evaluation

    def observe(self, values, step, config):
        """Takes the evaluation after `step`, {"accuracy": float, "loss": float}, and returns whether it is the best so far.

        A finished run that goes on evaluates its last step again; that counts once.
        """
        if step == self.step:
            return step == self.best_step
        self.step = step
        monitor = config.cadence.early_stopping_monitor.removeprefix("validation_")
        value, lower = values[monitor], monitor == "loss"
        is_best = self.best.observe(value, lower) or self.best_step is None
        if is_best:
            self.best_step = step
        self.stopping.observe(value, lower, config.cadence.early_stopping_min_delta)
        if config.schedule.schedule != "plateau":
            return is_best
        self.plateau.observe(value, lower)
        if self.plateau.waited >= PLATEAU_PATIENCE and self.plateau_drops < PLATEAU_MAX_DROPS:
            self.plateau_drops, self.plateau.waited = self.plateau_drops + 1, 0
        return is_best

    def copy_of_best(self):
        """What `restore_best` takes to undo an evaluation whose checkpoint could not be saved."""
        return dataclasses.replace(self.best), self.best_step

    def restore_best(self, copy):
        """Goes back to an earlier best value: `best` can only name a checkpoint that exists."""
        self.best, self.best_step = copy

    def out_of_patience(self, config):
        """Whether early stopping ends the run now."""
        patience = config.cadence.early_stopping_patience
        return patience > 0 and self.stopping.waited >= patience

    @classmethod
    def from_json(cls, values):
        """The inverse of `dataclasses.asdict`."""
        patience = {name: Patience(**values[name]) for name in ("best", "stopping", "plateau")}
        return cls(**{**values, **patience})
