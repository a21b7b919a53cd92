"""Learning rates: plain functions of the step, computed on the host. To add one, write a function and name it in SHAPES."""

import math

ONE_CYCLE_RISE = 0.3  # of the run; Smith and Topin, "Super-Convergence", and its usual implementations
ONE_CYCLE_START = 1 / 25
LOOKAHEAD_DECAY = 0.95  # per step; airbench (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.4)
PLATEAU_FACTOR = 0.1  # paper, section 5: divided by 10, three times, when the validation error stopped improving


def learning_rate(step, config, schedule_steps, epoch_steps, plateau_drops=0):
    """The learning rate of step `step` (0-based). The schedule spans `schedule_steps`, an epoch `epoch_steps`.

    `plateau_drops` is how often the plateau schedule has lowered the rate so far.
    """
    progress = min(step / schedule_steps, 1.0)
    warmup_steps = config.schedule.warmup_epochs * float(epoch_steps)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if config.schedule.schedule == "plateau":
        shape = PLATEAU_FACTOR**plateau_drops
    elif config.schedule.schedule == "triangle":
        shape = _triangle(progress, *config.schedule.triangle_points())
    else:
        shape = SHAPES[config.schedule.schedule](progress)
    return config.optimization.learning_rate * warmup * shape


def lookahead_share(step, config, schedule_steps):
    """How far Lookahead's slow weights move towards the trained ones after step `step` (0-based); 0 if they stay.

    They move after every --lookahead_steps steps. Zhang et al. ("Lookahead Optimizer: k steps forward, 1 step back") move them by
    a constant share. Here the share falls from 1 to 1 - 0.95^k, k = --lookahead_steps, over the schedule, as in airbench: at the
    beginning the slow weights follow the trained ones, and at the end they average them.
    """
    every = config.optimization.lookahead_steps
    if not every or (step + 1) % every:
        return 0.0
    return 1 - LOOKAHEAD_DECAY**every * min((step + 1) / schedule_steps, 1.0) ** 3


def _step(progress):
    return 0.1 ** sum(progress >= border for border in (0.5, 0.75))


def _cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(progress):
    if progress < ONE_CYCLE_RISE:
        return 1 - (1 - ONE_CYCLE_START) * _cosine(progress / ONE_CYCLE_RISE)
    return _cosine((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))


def _triangle(progress, start, peak, end):
    if progress < peak:
        return start + (1 - start) * progress / peak
    return 1 - (1 - end) * (progress - peak) / (1 - peak) if peak < 1 else 1.0


SHAPES = {"constant": lambda progress: 1.0, "step": _step, "cosine": _cosine, "one_cycle": _one_cycle}
