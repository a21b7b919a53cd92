"""When something is due: one rule for logs, evaluations and checkpoints, and one for how far to go before looking again."""

import dataclasses
import math
from fractions import Fraction


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
    """All events of a run, in steps done. Nothing is left to chance: the same plan fires at the same steps after a resume.

    Attributes:
      epoch_steps: steps in an epoch, a Fraction.
      schedule_steps: steps that --epochs takes; the learning rate's schedule spans them.
      last_step: where training ends at the latest.
      log, evaluate, checkpoints: when a train record, an evaluation and a checkpoint are due.
      steps_per_loop: the longest stretch between two looks.
      profile: where a profile starts and stops; empty: there is none.
    """

    epoch_steps: Fraction
    schedule_steps: int
    last_step: int
    log: Every
    evaluate: Every
    checkpoints: tuple
    steps_per_loop: int
    profile: tuple = ()

    def next_stop(self, step):
        """How far one call of the compiled loop may go from `step`: to the next event, at most steps_per_loop steps."""
        events = (self.log, self.evaluate, *self.checkpoints)
        profile = (border for border in self.profile if border > step)
        return min(step + self.steps_per_loop, self.last_step, *(event.next_due(step) for event in events), *profile)

    def log_due(self, step):
        """Whether a train record ends at `step`."""
        return self.log.is_due(step) or step == self.last_step

    def evaluation_due(self, step):
        """Whether the validation split is judged after `step`."""
        return self.evaluate.is_due(step) or step == self.last_step

    def checkpoint_due(self, step):
        """Whether the state after `step` is saved: where asked for, and after each evaluation, which may be the best."""
        return self.evaluation_due(step) or any(every.is_due(step) for every in self.checkpoints)

    def epoch(self, step):
        """How many epochs `step` steps are, a float."""
        return float(step / self.epoch_steps)


def make_plan(config, num_examples):
    """Turns the epochs and steps of an ExperimentConfig into a Plan, for a training split of `num_examples`."""
    epoch_steps = Fraction(num_examples, config.optimization.global_batch_size)
    schedule_steps = _whole_steps(config.schedule.epochs, epoch_steps)
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


def _whole_steps(epochs, epoch_steps):
    """The steps after which `epochs` passes over the examples are complete, rounded up."""
    return max(1, math.ceil(_decimal(epochs) * epoch_steps))


def _decimal(number):
    """The number as it was typed: 0.1 means 1/10, not the float next to it, which would add a step to many epochs."""
    return Fraction(str(number))
