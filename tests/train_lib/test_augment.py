"""PCA colour noise, cutout and mixup: NumPy by hand, and distributions."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from drivers import make_config, random_split

from input_pipeline.common.errors import SettingError
from input_pipeline.splits.resident import ResidentSplit
from train_lib import augment as device
from train_lib import steps
from train_lib.evaluate import make_eval_step
from train_lib.state import PixelScaling, create_state, pixel_scaling, principal_colors

MANY = 100_000


@pytest.fixture(scope="module")
def split():
    return random_split()


@pytest.fixture(scope="module")
def pixels():
    """A PixelScaling whose every number is another."""
    generator = np.random.default_rng(5)
    axes = generator.normal(size=(3, 3)) * [3.0, 12.0, 40.0]
    return PixelScaling(np.array([10.0, 20.0, 30.0]), np.array([0.5, 0.25, 0.125]), np.array([100.0, 90.0, 80.0]), axes)


def noisy(seed=0, height=8, width=6, count=10):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, height, width, 3)), np.arange(count, dtype=np.int32)


def chi_squared_is_fair(counts, probabilities=None):
    """Within four standard deviations of what fair counts give."""
    total = counts.sum()
    expected = np.full(len(counts), total / len(counts)) if probabilities is None else total * probabilities
    freedom = len(counts) - 1
    return np.sum((counts - expected) ** 2 / expected) < freedom + 4 * np.sqrt(2 * freedom)


# PCA colour noise.


def test_principal_colors_equal_the_covariance_of_numpy():
    """A covariance over images in place of pixels, or rows for columns, would give other colours."""
    generator = np.random.default_rng(3)
    mixture = np.array([[1.0, 0.4, 0.1], [0.2, 0.7, 0.3], [0.6, 0.1, 0.5]])
    images = np.clip(generator.normal(120, 40, (2500, 4, 4, 3)) @ mixture / 1.5, 0, 255).astype(np.uint8)
    split = ResidentSplit(images, np.zeros(2500, np.int32))
    covariance = np.cov(images.reshape(-1, 3).astype(np.float64) / 255, rowvar=False, bias=True)
    np.testing.assert_allclose(split.pixel_covariance() / 255**2, covariance, rtol=1e-11)
    axes = pixel_scaling("zero_one", split, ("pca_color",)).color_axes / 255
    eigenvalues = np.linalg.norm(axes, axis=0)
    directions = axes / eigenvalues
    np.testing.assert_allclose(covariance @ directions, directions * eigenvalues, atol=1e-12)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.sum(eigenvalues), np.trace(covariance), rtol=1e-12)


def test_principal_colors_do_not_depend_on_the_sign_of_an_eigenvector(monkeypatch):
    """Workers whose libraries differ would each add another colour."""
    covariance = np.cov(np.random.default_rng(0).normal(size=(3, 50)))
    expected, eigh = principal_colors(covariance), np.linalg.eigh

    def turned(matrix):
        eigenvalues, eigenvectors = eigh(matrix)
        return eigenvalues, eigenvectors * [-1, 1, -1]

    monkeypatch.setattr(np.linalg, "eigh", turned)
    np.testing.assert_array_equal(principal_colors(covariance), expected)


def test_color_noise_is_the_formula_of_the_paper(pixels):
    """p1, p2, p3 times alpha_i lambda_i, the same for all pixels of an image, in the scale of the input."""
    images, labels = noisy()
    config = make_config(augment="pca_color", precision="float64")
    augmented, targets = device.augment(config, pixels, tf.constant(images), tf.constant(labels), tf.constant(7, tf.int64), 0)
    integers = device.example_integers(device._COLOR, 7, 0, 10, 4).numpy()
    uniform = (integers.astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :2])), 2 * np.pi * uniform[:, 2:]
    alpha = 0.1 * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :3]
    for image, result, draws in zip(images, augmented.numpy(), alpha, strict=True):
        color = sum(draw * pixels.color_axes[:, axis] for axis, draw in enumerate(draws))
        np.testing.assert_allclose(result, image + color * pixels.scale, rtol=1e-12)
    assert targets.others is None and targets.labels.numpy().tolist() == labels.tolist()


def test_the_noise_is_normal_with_sigma_a_tenth():
    """Moments, independence and tails: a uniform draw or a sigma of the variance would show."""
    ones = PixelScaling(np.zeros(3), np.ones(3), color_axes=np.eye(3))
    alpha = device.color_noise(1, tf.constant(2, tf.int64), 0, MANY, ones, tf.float64).numpy() / 0.1
    assert np.abs(alpha.mean(axis=0)).max() < 4 / np.sqrt(MANY)
    np.testing.assert_allclose(np.cov(alpha, rowvar=False), np.eye(3), atol=4 * np.sqrt(2 / MANY))
    np.testing.assert_allclose((alpha**4).mean(axis=0), 3, atol=4 * np.sqrt(96 / MANY))
    edges = np.array([-1.959964, -1.0, 0.0, 1.0, 1.959964])
    probabilities = np.diff([0, 0.025, 0.15865525, 0.5, 0.84134475, 0.975, 1])
    for column in alpha.T:
        assert chi_squared_is_fair(np.bincount(np.searchsorted(edges, column), minlength=6), probabilities)


# Cutout.


@pytest.mark.parametrize(("height", "width"), [(8, 6), (32, 32), (7, 12)])
def test_cutout_hides_a_clipped_square_of_the_mean(pixels, height, width):
    """By hand, pixel by pixel; the mean must be that of the data, not a 0 that is another colour under --pixels=zero_one."""
    images, labels = noisy(height=height, width=width, count=40)
    config = make_config(augment="cutout", precision="float64")
    augmented, _ = device.augment(config, pixels, tf.constant(images), tf.constant(labels), tf.constant(3, tf.int64), 0)
    integers = device.example_integers(device._CUTOUT, 3, 0, 40, 2).numpy().astype(object)
    side = min(height, width) // 2
    for image, result, (down, across) in zip(images, augmented.numpy(), integers, strict=True):
        top, left = down * height // 2**32 - side // 2, across * width // 2**32 - side // 2
        expected = image.copy()
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = (pixels.mean - pixels.offset) * pixels.scale
        np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_cutout_centres_are_uniform_over_the_image():
    """A centre that never comes near a border would spare the border."""
    height, width = 8, 6
    masks = device.cutout_masks(0, tf.constant(0, tf.int64), 0, MANY, height, width).numpy()
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    bottom, right = height - rows[:, ::-1].argmax(axis=1), width - columns[:, ::-1].argmax(axis=1)
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    # Side 3: the centre is the second row of the square, or the border where the first is cut off.
    down = np.where(rows.sum(axis=1) == 3, top + 1, np.where(top == 0, 0, height - 1))
    across = np.where(columns.sum(axis=1) == 3, left + 1, np.where(left == 0, 0, width - 1))
    assert set(rows.sum(axis=1)) == {2, 3} and bottom.max() == height and right.max() == width
    assert chi_squared_is_fair(np.bincount(down * width + across, minlength=height * width))


def test_the_mean_is_measured_where_cutout_needs_it(split):
    for pixels in ("zero_one", "minus_one_one", "standardized"):
        scaling = pixel_scaling(pixels, split, ("cutout",))
        np.testing.assert_allclose(scaling.mean, split.images.reshape(-1, 3).mean(axis=0), rtol=1e-12)
        assert pixel_scaling(pixels, split).mean is None


def test_standardized_pixels_have_mean_0_and_deviation_1(split):
    scaling = pixel_scaling("standardized", split)
    pixels = (split.images.reshape(-1, 3) - scaling.offset) * scaling.scale
    np.testing.assert_allclose([pixels.mean(axis=0), pixels.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-9)


# Mixup.


def test_mixup_by_hand():
    """Images, loss and accuracy of pairs (0, 1), (2, 3), ...; a label that did not follow its image would train on noise."""
    images, labels = noisy(count=6)
    kept = np.array([0.9, 0.2, 0.5, 1.0, 0.0, 0.4])
    mixed, targets = device.mix(tf.constant(images), tf.constant(labels), tf.constant(kept))
    partners = [1, 0, 3, 2, 5, 4]
    share = kept[:, None, None, None]
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[partners])
    assert targets.labels.numpy().tolist() == [0, 0, 2, 3, 5, 4]
    logits = np.random.default_rng(1).normal(size=(6, 6))
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for smoothing in (0.0, 0.1):
        losses = steps.training_loss(targets, tf.constant(logits), SimpleNamespace(label_smoothing=smoothing)).numpy()
        for i, (k, p) in enumerate(zip(kept, partners, strict=True)):
            wanted = k * np.eye(6)[labels[i]] + (1 - k) * np.eye(6)[labels[p]]
            smooth = (1 - smoothing) * wanted + smoothing / 6
            np.testing.assert_allclose(losses[i], -np.sum(smooth * log_probability[i]), rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0])
def test_the_weights_follow_the_beta_distribution(alpha):
    """Against the distribution function; and finite at the ends, where u^(-1/alpha) overflows."""
    draws = device.symmetric_beta(device.uniforms(device.example_integers(4, 1, 0, MANY, 2)), alpha).numpy()
    edges = np.array([1e-6, 1e-3, 0.02, 0.1, 0.5, 0.9, 0.98, 0.999, 1 - 1e-6]) if alpha < 1 else np.linspace(0.1, 0.9, 9)
    below = tf.math.betainc(tf.constant(alpha, tf.float64), tf.constant(alpha, tf.float64), tf.constant(edges)).numpy()
    assert chi_squared_is_fair(np.bincount(np.searchsorted(edges, draws), minlength=len(edges) + 1), np.diff([0, *below, 1]))
    ends = device.uniforms(tf.constant([[0, 0], [2**32 - 1, 0], [0, 2**30], [2**32 - 1, 2**30]], tf.uint32))
    assert np.isfinite(device.symmetric_beta(ends, alpha)).all()


def test_the_weights_of_a_step_are_those_of_the_documented_distribution():
    kept = device.mixing_weights(0, tf.constant(0, tf.int64), 0, MANY).numpy()
    # Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    np.testing.assert_allclose([kept.mean(), kept.var()], [0.5, 1 / (4 * 1.4)], atol=4 / np.sqrt(MANY))


@pytest.mark.parametrize("values", [{}, {"accumulate_steps": 2}, {"virtual_devices": 2}])
def test_mixup_refuses_an_odd_share(values):
    """The last example of a part would be mixed with one of another replica, or with nothing."""
    size = 6 if values else 3
    with pytest.raises(SettingError, match="--augment=mixup.*even"):
        make_config(augment="mixup", global_batch_size=size, **values)
    make_config(augment="cutout", global_batch_size=size, **values)


# All of them.


def test_the_draws_differ_between_steps_examples_and_kinds():
    """One stream for all would hide the left of each image that is darkened."""
    draw = [device.example_integers(seed + kind, step, 0, 50, 4).numpy()
            for seed in (0, 1) for kind in (0, device._COLOR, device._CUTOUT, device._MIXUP) for step in (0, 1)]
    rows = np.concatenate(draw)
    assert len(np.unique(rows[:, 0])) == len(rows)


def test_what_was_measured_survives_a_checkpoint(pixels):
    """A resumed run would go on with other colours; a checkpoint without them must still be read."""
    back = PixelScaling.from_tensors(pixels.tensors() | {"model/other": np.zeros(1)}, "a checkpoint")
    for name in ("offset", "scale", "mean", "color_axes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pixels, name))
    plain = PixelScaling.from_tensors(PixelScaling(pixels.offset, pixels.scale).tensors(), "a checkpoint")
    assert plain.mean is None and plain.color_axes is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_parts_of_a_batch_get_the_rows_of_the_whole(pixels, jit_compile):
    """A generator with a state, or a number within the part, would augment differently on 1 and N replicas; XLA draws alike."""
    config = make_config(augment="pca_color,cutout,mixup", precision="float64", seed=2**31 - 1)
    images, labels = noisy(count=12)

    @tf.function(jit_compile=jit_compile)
    def augment(images, labels, step, first_example):
        image, targets = device.augment(config, pixels, images, labels, step, first_example)
        return image, targets.labels, targets.others, targets.weight

    step = tf.constant(2**40, tf.int64)
    whole = device.augment(config, pixels, tf.constant(images), tf.constant(labels), step, 0)
    parts = [augment(images[i : i + 4], labels[i : i + 4], step, tf.constant(i)) for i in (0, 4, 8)]
    for ours, theirs in zip(zip(*parts, strict=True), (whole[0], *whole[1]), strict=True):
        np.testing.assert_allclose(np.concatenate(ours), theirs, rtol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_lower_precisions_augment_alike(pixels, precision):
    """Draws in the network's own precision would put squares elsewhere; proofs in float64 would not hold for float32."""
    images, labels = noisy()
    config, step = make_config(augment="pca_color,cutout,mixup"), tf.constant(3, tf.int64)
    exact, exact_targets = device.augment(config, pixels, tf.constant(images), tf.constant(labels), step, 0)
    rough, targets = device.augment(config, pixels, tf.constant(images, precision), tf.constant(labels), step, 0)
    assert rough.dtype == precision
    tolerance = {"float32": 1e-5, "bfloat16": 0.6, "float16": 0.08}[precision]  # of numbers up to 50
    np.testing.assert_allclose(tf.cast(rough, tf.float64), exact, atol=tolerance)
    assert (targets.labels == exact_targets.labels).numpy().all()


def test_evaluation_sees_images_as_they_are(split, pixels):
    """A validation accuracy of mixed images would choose the wrong checkpoint."""
    plain, augmented = (make_config(augment=names) for names in ("none", "pca_color,cutout,mixup"))
    batch = {"image": tf.constant(split.images[:8])}
    logits = []
    strategy = tf.distribute.get_strategy()
    for config in (plain, augmented):
        state = create_state(config, strategy, 10, split.image_shape, pixels)
        logits.append(make_eval_step(strategy, state)(batch).numpy())
    np.testing.assert_array_equal(*logits)
