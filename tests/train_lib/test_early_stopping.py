"""Early stopping, the best checkpoint and the plateau schedule on sequences worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from train_lib import config as config_lib
from train_lib.cadence import Patience, ValidationTracker


def observe(sequence, tracker=None, first=1, **values):
    """Lets a ValidationTracker observe (accuracy or loss) values at steps 1, 2, ...; returns it and which were the best."""
    config = config_lib.from_values(values)
    name = config.cadence.early_stopping_monitor.removeprefix("validation_")
    tracker = tracker or ValidationTracker()
    best = [
        tracker.observe({"accuracy": 0.5, "loss": 0.5, name: value}, step, config)
        for step, value in enumerate(sequence, first)
    ]
    return tracker, best, config


def stop_step(sequence, **values):
    """After which of the values early stopping ends the run, None: never."""
    tracker = ValidationTracker()
    for step, value in enumerate(sequence, 1):
        _, _, config = observe([value], tracker, step, **values)
        if tracker.out_of_patience(config):
            return step
    return None


def test_accuracy_gains_upwards_and_loss_downwards():
    assert observe([0.5, 0.6, 0.55, 0.7])[1] == [True, True, False, True]
    assert observe([0.5, 0.6, 0.45, 0.7], early_stopping_monitor="validation_loss")[1] == [True, False, True, False]


def test_a_tie_keeps_the_first():
    """Later is not better: of equal accuracies the least trained network is kept, and patience goes on."""
    tracker, best, _ = observe([0.5, 0.5, 0.5])
    assert best == [True, False, False] and tracker.best_step == 1 and tracker.stopping.waited == 2


@pytest.mark.parametrize("monitor", config_lib.MONITORS)
def test_nan_never_gains_and_never_becomes_what_must_be_beaten(monitor):
    values = [math.nan, math.nan, 0.3, math.nan, 0.3]
    tracker, best, _ = observe(values, early_stopping_monitor=monitor)
    assert best == [True, False, True, False, False]  # the first, so that a run has a best whatever comes
    assert (tracker.best_step, tracker.best.best, tracker.best.waited) == (3, 0.3, 2)


def test_an_infinite_loss_is_beaten_by_a_finite_one():
    tracker, best, _ = observe([math.inf, math.inf, 5.0], early_stopping_monitor="validation_loss")
    assert best == [True, False, True] and tracker.best_step == 3


@pytest.mark.parametrize(
    ("patience", "sequence", "step"),
    [
        (1, [0.5, 0.6, 0.6], 3),
        (2, [0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 5),
        (3, [0.5, 0.4, 0.4, 0.6, 0.4, 0.4], None),
        (0, [0.5] * 50, None),
        (2, [math.nan, math.nan, 0.9], 2),
    ],
)
def test_patience_counts_evaluations_without_gain(patience, sequence, step):
    assert stop_step(sequence, early_stopping_patience=patience) == step


def test_min_delta_must_be_exceeded_and_is_for_stopping_alone():
    """Eighths are exact in binary: a gain of just min_delta does not count, yet the best checkpoint takes any gain."""
    values = {"early_stopping_patience": 2, "early_stopping_min_delta": 0.125}
    sequence = [0.25, 0.375, 0.375 - 0.0625, 0.5]
    tracker, best, config = observe(sequence[:3], **values)
    assert best == [True, True, False] and tracker.out_of_patience(config) and tracker.best_step == 2
    assert observe(sequence, **values)[0].stopping.waited == 0  # 0.5 is 0.25 above the 0.25 that must be beaten


def test_small_gains_add_up():
    """The value to beat stays where it was until it is beaten by more than min_delta: creeping still counts in the end."""
    creeping = [0.25 + step * 0.0625 for step in range(8)]
    assert stop_step(creeping, early_stopping_patience=3, early_stopping_min_delta=0.125) is None
    assert stop_step(creeping, early_stopping_patience=2, early_stopping_min_delta=0.125) == 3


def test_plateau_drops_after_five_evaluations_without_gain_three_times_at_most():
    tracker, drops = ValidationTracker(), []
    for step in range(1, 30):
        observe([0.5], tracker, step, schedule="plateau")
        drops.append(tracker.plateau_drops)
    # The first is a gain; then a drop after each five.
    assert drops == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 14


def test_a_gain_starts_the_plateau_count_again():
    tracker, _, _ = observe([0.5] * 5 + [0.6] + [0.5] * 4, schedule="plateau")
    assert tracker.plateau_drops == 0
    assert observe([0.5], tracker, 11, schedule="plateau")[0].plateau_drops == 1


def test_other_schedules_count_no_plateau():
    """Else a run that goes on with --schedule=plateau would begin with all its drops."""
    tracker, _, _ = observe([0.5] * 30)
    assert tracker.plateau_drops == 0 and tracker.plateau == Patience()
    assert observe([0.5] * 6, tracker, 31, schedule="plateau")[0].plateau_drops == 1


@pytest.mark.parametrize("value", [0.4, 0.5, 0.6, math.nan])
def test_an_evaluation_that_is_done_again_counts_once(value):
    once, _, config = observe([0.5, value], early_stopping_patience=3)
    twice = ValidationTracker.from_json(dataclasses.asdict(once))
    assert twice.observe({"accuracy": value, "loss": 0.5}, 2, config) == (twice.best_step == 2)
    assert twice == once


@pytest.mark.parametrize("monitor", config_lib.MONITORS)
@pytest.mark.parametrize("cut", [0, 1, 4, 11, 19])
def test_a_tracker_survives_json_anywhere(monitor, cut):
    """Killed after any evaluation, the run goes on with the same verdicts."""
    sequence = [math.inf, *np.random.default_rng(cut).random(10).round(1).tolist(), math.nan, *[0.5] * 8]
    values = {"early_stopping_monitor": monitor, "early_stopping_min_delta": 0.05, "early_stopping_patience": 4}
    whole, best, _ = observe(sequence, **values)
    before, first_part, _ = observe(sequence[:cut], **values)
    stored = json.loads(json.dumps(dataclasses.asdict(before)))
    after, second_part, _ = observe(sequence[cut:], ValidationTracker.from_json(stored), cut + 1, **values)
    assert after == whole and first_part + second_part == best


def test_best_agrees_with_numpy():
    values = np.random.default_rng(0).random(200)
    assert observe(values.tolist())[0].best_step == values.argmax() + 1
    assert observe(values.tolist(), early_stopping_monitor="validation_loss")[0].best_step == values.argmin() + 1


def test_patience_starts_empty():
    assert Patience() == Patience(best=None, waited=0)
    patience = Patience()
    assert patience.observe(-1e9, lower_is_better=False, min_delta=100.0)  # nothing to beat yet
