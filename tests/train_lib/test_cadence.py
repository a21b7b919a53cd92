"""When things are due, against a slow reference that knows only what "every so many steps" means."""

import math
from fractions import Fraction

import pytest

from train_lib import config as config_lib
from train_lib.cadence import Every, make_plan


def due_steps(period, last):
    """The steps up to `last` that complete a whole number of periods: all ceil(k * period), one k after the other."""
    steps, k = set(), 1
    while (step := math.ceil(k * Fraction(period))) <= last:
        steps.add(max(step, 1))
        k += 1
    return steps


@pytest.mark.parametrize(
    "period",
    ["1", "2", "7", "50", "50000/128", "60000/128", "3/2", "10/3", "1001/1000", "1/2", "1/30", "999/1000", "40503/64"],
)
def test_every_is_due_where_a_period_is_completed(period):
    every, last = Every(Fraction(period)), 2000
    expected = due_steps(period, last)
    assert {step for step in range(last + 1) if every.is_due(step)} == expected
    for step in range(0, last - 1000, 7):
        assert every.next_due(step) == min(due for due in expected if due > step)


def test_every_in_numbers():
    """Hand-computed: CIFAR-10 in batches of 128 has epochs of 390.625 steps."""
    every = Every(Fraction(50000, 128))
    walked = [0]
    while len(walked) < 9:
        walked.append(every.next_due(walked[-1]))
    assert walked[1:] == [391, 782, 1172, 1563, 1954, 2344, 2735, 3125]
    assert not every.is_due(0)


def test_periods_far_out_do_not_drift():
    """After a million epochs a float sum of 390.625 / 3 would be off; the event must still be the exact one."""
    every = Every(Fraction(50000, 384))
    k = 3 * 10**6 + 1
    step = math.ceil(k * Fraction(50000, 384))
    assert every.is_due(step) and every.next_due(step - 1) == step


PLANS = [
    (50000, {"global_batch_size": 128, "epochs": 3.0, "log_every_steps": 50, "steps_per_loop": 20}),
    (50000, {"global_batch_size": 128, "epochs": 2.5, "eval_every_epochs": 0.3, "checkpoint_every_steps": 37}),
    (50000, {"global_batch_size": 128, "epochs": 1.0, "eval_every_epochs": 0.4, "steps_per_loop": 1000}),
    (5000, {"global_batch_size": 100, "epochs": 3.0, "eval_every_epochs": 0.1, "steps_per_loop": 7}),
    (300, {"global_batch_size": 32, "epochs": 5.0, "eval_every_epochs": 0.01, "steps_per_loop": 5}),
    (300, {"global_batch_size": 32, "epochs": 9.0, "max_steps": 23, "log_every_steps": 4, "steps_per_loop": 3}),
    (10, {"global_batch_size": 64, "epochs": 30.0, "eval_every_epochs": 7.0, "steps_per_loop": 4}),
    (1000, {"global_batch_size": 10, "epochs": 0.001, "steps_per_loop": 4}),
]


@pytest.mark.parametrize(("num_examples", "values"), PLANS)
def test_a_walk_meets_every_event_and_nothing_else(num_examples, values):
    """The compiled loop must stop at each event: one that it jumps over is a record, evaluation or checkpoint that is lost."""
    config = config_lib.from_values({"global_batch_size": 100, **values})
    plan = make_plan(config, num_examples)
    epoch_steps = Fraction(num_examples, config.optimization.global_batch_size)
    schedule_steps = max(1, math.ceil(Fraction(str(config.schedule.epochs)) * epoch_steps))
    last = min(schedule_steps, config.schedule.max_steps or schedule_steps)
    assert (plan.schedule_steps, plan.last_step, plan.epoch_steps) == (schedule_steps, last, epoch_steps)

    log = due_steps(config.cadence.log_every_steps, last) | {last}
    evaluate = due_steps(Fraction(str(config.cadence.eval_every_epochs)) * epoch_steps, last) | {last}
    checkpoint = evaluate | due_steps(epoch_steps, last)
    if config.cadence.checkpoint_every_steps:
        checkpoint |= due_steps(config.cadence.checkpoint_every_steps, last)
    for step in range(1, last + 1):
        assert plan.log_due(step) == (step in log), step
        assert plan.evaluation_due(step) == (step in evaluate), step
        assert plan.checkpoint_due(step) == (step in checkpoint), step

    events = log | evaluate | checkpoint
    for step in range(last):
        stop = plan.next_stop(step)
        assert stop == min([step + config.device.steps_per_loop, *(event for event in events if event > step)]), step


@pytest.mark.parametrize("stopped_at", [1, 11, 12, 20, 22])
def test_a_resumed_walk_ends_records_at_the_same_steps(stopped_at):
    """A run killed anywhere goes on to the same events: the plan depends on the step alone."""
    plan = make_plan(config_lib.from_values({"global_batch_size": 32, "epochs": 3.0, "log_every_steps": 4}), 300)

    def logged(step):
        steps = []
        while step < plan.last_step:
            step = plan.next_stop(step)
            if plan.log_due(step):
                steps.append(step)
        return steps

    assert logged(stopped_at) == [step for step in logged(0) if step > stopped_at]


@pytest.mark.parametrize(
    ("epochs", "num_examples", "batch", "steps"),
    [
        (0.1, 5000, 100, 5),  # the float 0.1 is a little above 1/10: its exact value would take a sixth step
        (0.7, 1000, 10, 70),
        (1.1, 5000, 100, 55),
        (2.3, 1000, 1, 2300),
        (24.0, 8000, 64, 3000),
        (24, 8000, 64, 3000),
        (1e-9, 5000, 100, 1),  # a run has a step
        (30.0, 47500, 128, 11133),  # 11132.8125
    ],
)
def test_epochs_mean_the_decimal_that_was_typed(epochs, num_examples, batch, steps):
    config = config_lib.from_values({"epochs": epochs, "global_batch_size": batch, "eval_every_epochs": epochs})
    plan = make_plan(config, num_examples)
    assert plan.schedule_steps == steps
    assert plan.evaluate.next_due(0) == steps


def test_epochs_of_numpy_mean_the_same():
    """In a notebook an epoch count may come out of an array; its repr is not a number."""
    import numpy as np

    config = config_lib.from_values({"epochs": np.float64(0.1), "global_batch_size": 100})
    assert make_plan(config, 5000).schedule_steps == 5


def test_max_steps_cuts_the_run_and_not_the_schedule():
    values = {"epochs": 4.0, "global_batch_size": 100}
    plan = make_plan(config_lib.from_values({**values, "max_steps": 70}), 5000)
    assert (plan.last_step, plan.schedule_steps) == (70, 200)
    plan = make_plan(config_lib.from_values({**values, "max_steps": 500}), 5000)
    assert (plan.last_step, plan.schedule_steps) == (200, 200)
    assert plan.epoch(75) == 1.5
