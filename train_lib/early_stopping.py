"""Judges a sequence of validation values: is this one the best, has it stopped gaining?"""

import dataclasses
import math

PLATEAU_PATIENCE = 5  # evaluations
PLATEAU_MAX_DROPS = 3  # paper, section 5


@dataclasses.dataclass
class Patience:
    """Counts evaluations without gain.

    Attributes:
      best: the value that the next one must beat; None before the first.
      waited: evaluations since `best` was reached.
    """

    best: float | None = None
    waited: int = 0

    def observe(self, value, lower_is_better, min_delta=0.0):
        """Takes one value and returns whether it gained more than `min_delta`. NaN never gains."""
        gain = math.inf if self.best is None else (self.best - value if lower_is_better else value - self.best)
        if gain > min_delta and not math.isnan(value):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False


@dataclasses.dataclass
class Judgement:
    """What a run knows about its validation values; survives a crash inside the checkpoint.

    Attributes:
      best: the best value so far, by any gain; its step names the best checkpoint.
      best_step: the step of the best value, of the first where none is a number; None before the first evaluation.
      step: the step of the newest value, None before the first evaluation.
      stopping: for early stopping, with its min_delta.
      plateau: for the plateau schedule.
      plateau_drops: how often the learning rate was divided by 10.
    """

    best: Patience = dataclasses.field(default_factory=Patience)
    best_step: int | None = None
    stopping: Patience = dataclasses.field(default_factory=Patience)
    plateau: Patience = dataclasses.field(default_factory=Patience)
    plateau_drops: int = 0
    step: int | None = None

    def observe(self, values, step, config):
        """Takes the evaluation after `step`, {"accuracy": float, "loss": float}; returns whether it is the best so far.

        One that was taken before, which a run evaluates again that goes on at its end, counts once.
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

    def out_of_patience(self, config):
        """Whether early stopping ends the run."""
        patience = config.cadence.early_stopping_patience
        return patience > 0 and self.stopping.waited >= patience

    @classmethod
    def from_json(cls, values):
        """The inverse of `dataclasses.asdict`."""
        patience = {name: Patience(**values[name]) for name in ("best", "stopping", "plateau")}
        return cls(**{**values, **patience})
