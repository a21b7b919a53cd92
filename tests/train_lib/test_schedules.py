"""Learning rates against values computed by hand."""

import math
from fractions import Fraction

import pytest

from train_lib import config as config_lib
from train_lib.schedules import learning_rate

SCHEDULES = ("constant", "step", "cosine", "one_cycle", "triangle", "plateau")


def rates(schedule, steps, drops=0, **values):
    """The rates of a run of `steps` steps, ten an epoch."""
    config = config_lib.from_values({"schedule": schedule, "learning_rate": 0.04, **values})
    return [learning_rate(step, config, steps, Fraction(10), drops) for step in range(steps)]


def test_constant():
    assert rates("constant", 7) == [0.04] * 7


def test_step_divides_by_ten_at_a_half_and_three_quarters():
    expected = [0.04] * 4 + [0.004] * 2 + [0.0004] * 2
    assert rates("step", 8) == pytest.approx(expected, rel=1e-12)
    # Of 10 steps 3/4 is 7.5: step 7 still has the rate before.
    assert rates("step", 10) == pytest.approx([0.04] * 5 + [0.004] * 3 + [0.0004] * 2, rel=1e-12)


def test_cosine_by_the_angles_of_thirty_degrees():
    third = [1, (2 + math.sqrt(3)) / 4, 0.75, 0.5, 0.25, (2 - math.sqrt(3)) / 4]
    assert rates("cosine", 6) == pytest.approx([0.04 * value for value in third], rel=1e-12)


def test_cosine_ends_at_zero_and_stays_there():
    """A run that goes past its schedule must not climb again."""
    config = config_lib.from_values({"schedule": "cosine", "learning_rate": 0.04})
    for step in (100, 101, 150, 200):
        assert learning_rate(step, config, 100, Fraction(10)) == pytest.approx(0, abs=1e-17)
    last = learning_rate(99, config, 100, Fraction(10))
    assert last == pytest.approx(0.04 * math.sin(math.pi / 200) ** 2, rel=1e-9) and last > 0


def test_one_cycle_starts_at_a_25th_peaks_at_three_tenths_and_falls():
    values = rates("one_cycle", 100)
    assert values[0] == pytest.approx(0.04 / 25, rel=1e-12)
    assert values[15] == pytest.approx(0.04 * (1 + 1 / 25) / 2, rel=1e-12)  # half the rise, half the height
    assert values[25] == pytest.approx(0.04 * (1 - 24 / 25 * (2 - math.sqrt(3)) / 4), rel=1e-12)  # 150 of 180 degrees
    assert max(values) == values[30] == 0.04
    assert values[65] == pytest.approx(0.02, rel=1e-12)
    assert values[:31] == sorted(values[:31]) and values[30:] == sorted(values[30:], reverse=True)
    assert 0 < values[99] < 0.04 / 1000


def test_triangle_by_hand():
    """From a fifth to the whole at a quarter of the run, then down to a tenth."""
    values = rates("triangle", 8, triangle="0.2,0.25,0.1")
    down = [1 - 0.9 * share / 6 for share in range(6)]
    assert values == pytest.approx([0.04 * value for value in (0.2, 0.6, *down)], rel=1e-12)
    assert rates("triangle", 4, triangle="0,0,1") == pytest.approx([0.04] * 4, rel=1e-12)
    assert rates("triangle", 4, triangle="0.5,1,0") == pytest.approx([0.02, 0.025, 0.03, 0.035], rel=1e-12)


@pytest.mark.parametrize(("drops", "factor"), [(0, 1), (1, 0.1), (2, 0.01), (3, 0.001)])
def test_plateau_divides_by_ten_at_each_drop(drops, factor):
    assert rates("plateau", 3, drops) == pytest.approx([0.04 * factor] * 3, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES[:-1])
def test_only_plateau_looks_at_drops(schedule):
    assert rates(schedule, 20, drops=2) == rates(schedule, 20, drops=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_a_linear_rise_laid_over_the_schedule(schedule):
    plain, warm = rates(schedule, 40), rates(schedule, 40, warmup_epochs=2.0)
    rise = [(step + 1) / 20 for step in range(20)] + [1.0] * 20
    assert warm == pytest.approx([rate * factor for rate, factor in zip(plain, rise, strict=True)], rel=1e-12)
    assert warm[0] > 0  # a first step of rate 0 would change nothing


def test_warmup_of_a_fraction_of_an_epoch():
    assert rates("constant", 6, warmup_epochs=0.25) == pytest.approx([0.016, 0.032] + [0.04] * 4, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999])
def test_no_rate_is_negative_or_above_the_highest(schedule, steps):
    assert all(0 < rate <= 0.04 for rate in rates(schedule, steps))
