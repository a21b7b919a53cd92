"""With every augmentation on, one result however the batch is shared out."""

import numpy as np
import pytest
from drivers import Driver, make_config, random_split

from train_lib import steps
from train_lib.state import pixel_scaling

STEPS = 2
EVERYTHING = {
    "precision": "float64", "augment": "random_resized_crop,flip,rand_augment,pca_color,cutout,random_erasing,mixup",
    "dropout_rate": 0.5, "learning_rate": 0.05, "label_smoothing": 0.1, "steps_per_loop": STEPS,
}
CUTMIX = EVERYTHING["augment"].replace("mixup", "cutmix")


@pytest.fixture(scope="module")
def split():
    return random_split()


def train(split, num_replicas=1, **values):
    """A driven network with everything on; its weights and losses after two steps."""
    config = make_config(**EVERYTHING | values)
    driver = Driver(config, split, num_replicas)
    driver.state.pixels = pixel_scaling("standardized", split, config.data.augmentations)
    *_, reports = driver.run(STEPS)
    return driver.weights(), reports


@pytest.fixture(scope="module")
def reference(split):
    return train(split)


@pytest.mark.parametrize(("num_replicas", "values"), [
    (2, {}), (4, {}), (1, {"accumulate_steps": 4}), (2, {"accumulate_steps": 2}),
    pytest.param(1, {"xla": "on"}, marks=pytest.mark.slow),
])
def test_replicas_and_parts_equal_the_large_batch(split, reference, num_replicas, values):
    """Draws by replica, or pairs across parts, would train another network on each number of devices."""
    weights, reports = train(split, num_replicas, **values)
    np.testing.assert_allclose(reports["loss"], reference[1]["loss"], rtol=1e-9)
    np.testing.assert_array_equal(reports["accuracy"], reference[1]["accuracy"])
    for ours, theirs in zip(weights, reference[0], strict=True):
        assert np.max(np.abs(ours - theirs)) < 1e-9 * np.max(np.abs(theirs))


def test_cutmix_on_replicas_and_parts_equals_the_large_batch(split):
    """Its pairs, too, must not be split; mixup excludes it from the test above."""
    (ours, reports), (theirs, expected) = train(split, 2, accumulate_steps=2, augment=CUTMIX), train(split, augment=CUTMIX)
    np.testing.assert_allclose(reports["loss"], expected["loss"], rtol=1e-9)
    np.testing.assert_array_equal(reports["accuracy"], expected["accuracy"])
    for weight, other in zip(ours, theirs, strict=True):
        assert np.max(np.abs(weight - other)) < 1e-9 * np.max(np.abs(other))


def test_the_equality_would_show_equal_draws_on_every_replica(split, reference, monkeypatch):
    """A proof that cannot fail proves nothing."""
    augment = steps.augment
    monkeypatch.setattr(steps, "augment", lambda *arguments: augment(*arguments[:-1], 0))
    _, reports = train(split, 2)
    assert np.max(np.abs(reports["loss"] / reference[1]["loss"] - 1)) > 1e-4


@pytest.mark.parametrize(
    "name", ["pca_color", "cutout", "mixup", "random_resized_crop", "rand_augment", "random_erasing", "cutmix"])
def test_each_augmentation_changes_the_step(split, reference, name):
    """A flag that is accepted and does nothing."""
    names = CUTMIX if name == "cutmix" else EVERYTHING["augment"]
    expected = train(split, augment=CUTMIX)[1] if name == "cutmix" else reference[1]
    _, reports = train(split, augment=",".join(other for other in names.split(",") if other != name))
    assert np.isfinite(expected["loss"]).all()
    assert np.max(np.abs(reports["loss"] / expected["loss"] - 1)) > 1e-4
