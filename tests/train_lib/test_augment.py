"""PCA colour noise, cutout, random erasing, mixup and CutMix: NumPy by hand, and distributions."""

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


# Random erasing.


def augment_noise(name, height, width, count, pixels):
    """Images of noise, their labels, and what `augment` makes of them in float64 at step 3, examples 4 on, with seed 6."""
    images, labels = noisy(height=height, width=width, count=count)
    config = make_config(augment=name, precision="float64", seed=6)
    result, targets = device.augment(
        config, pixels, tf.constant(images), tf.constant(labels), tf.constant(3, tf.int64), tf.constant(4))
    return images, labels, result.numpy(), targets


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 7), (6, 30)])
def test_random_erasing_by_hand(pixels, height, width):
    """Rectangles and values pixel by pixel; in low images many sizes do not fit, and some of the images have none that does."""
    images, _, result, targets = augment_noise("random_erasing", height, width, 200, pixels)
    integers = device.example_integers(6 + device._ERASING, 3, 4, 200, 11 + -(-height * width * 3 // 4)).numpy()
    tried = []
    for image, erased, draws in zip(images, result, integers, strict=True):
        uniform, expected, found = (draws[:11].astype(np.float64) + 0.5) / 2**32, image.copy(), None
        for attempt in range(4):
            area, ratio = uniform[3 + 2 * attempt : 5 + 2 * attempt] * [0.38, 1 / 0.3 - 0.3] + [0.02, 0.3]
            rows, columns = round((area * height * width * ratio) ** 0.5), round((area * height * width / ratio) ** 0.5)
            if found is None and rows <= height and columns <= width:
                found = max(rows, 1), max(columns, 1), attempt
            elif attempt == 0:
                cut = min(rows, height), min(columns, width), 4
        rows, columns, attempt = found or cut
        top, left = int(uniform[1] * (height - rows + 1)), int(uniform[2] * (width - columns + 1))
        values = draws[11:].astype("<u4").view(np.uint8)[: image.size].reshape(image.shape)
        if uniform[0] < 0.5:
            part = slice(top, top + rows), slice(left, left + columns)
            expected[part] = (values[part] - pixels.offset) * pixels.scale
            tried.append(attempt)
        np.testing.assert_allclose(erased, expected, rtol=1e-12)
    assert targets.others is None and 70 < len(tried) < 130
    assert {0, 1, 2, 3, 4} <= set(tried) or height > 6


def test_erased_rectangles_have_the_distributions_of_the_paper():
    """Half of the images, areas, ratios of the sides, places and values. Below 30 % of the area every size fits."""
    size, count, generator = 48, 12_000, np.random.default_rng(0)
    masks, values = (tensor.numpy() for tensor in device.erasing(1, tf.constant(2, tf.int64), 0, count, size, size))
    erased = masks.any(axis=(1, 2))
    assert abs(erased.mean() - 0.5) < 4 * np.sqrt(0.25 / count)
    rows, columns = masks[erased].any(axis=2), masks[erased].any(axis=1)
    tall, wide = rows.sum(axis=1), columns.sum(axis=1)
    area = tall * wide / size**2
    assert 0.015 < area.min() < 0.025 and 0.38 < area.max() < 0.42
    assert chi_squared_is_fair(np.histogram(area, np.linspace(0.02, 0.3, 6))[0])
    small = (area > 0.1) & (area < 0.3)  # of smaller ones, rounding to pixels moves the ratio
    assert chi_squared_is_fair(np.histogram((tall / wide)[small], np.linspace(0.3, 1 / 0.3, 6))[0])
    for lines, length in ((rows, tall), (columns, wide)):
        place = (lines.argmax(axis=1) + generator.random(len(lines))) / (size - length + 1)  # uniform if all are as likely
        assert chi_squared_is_fair(np.histogram(place, np.linspace(0, 1, 5))[0])
    assert chi_squared_is_fair(np.bincount(values[:1000].reshape(-1), minlength=256))
    assert abs(np.corrcoef(values[:300, 0, 0, 0], values[:300, 0, 0, 1])[0, 1]) < 4 / np.sqrt(300)


# Mixup and CutMix.


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


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14)])
def test_cutmix_by_hand(pixels, height, width):
    """Rectangles of the partner, labels, weights, loss; a weight that is not the share of pixels trains on wrong labels."""
    images, labels, result, targets = augment_noise("cutmix", height, width, 60, pixels)
    integers = device.example_integers(6 + device._CUTMIX, 3, 4, 60, 3).numpy().astype(object)
    logits = np.random.default_rng(1).normal(size=(60, 60))
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    losses = steps.training_loss(targets, tf.constant(logits), SimpleNamespace(label_smoothing=0.0)).numpy()
    for i, (share, down, across) in enumerate(integers):
        partner, side = i + 1 - 2 * (i % 2), (1 - (share + 0.5) / 2**32) ** 0.5  # side: sqrt(1 - lambda)
        rows, columns = round(side * height), round(side * width)
        top, left = down * height // 2**32 - rows // 2, across * width // 2**32 - columns // 2
        own = np.ones((height, width), bool)
        own[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)] = False
        np.testing.assert_array_equal(result[i], np.where(own[..., None], images[i], images[partner]))
        kept = own.mean()
        first, second = (i, partner) if kept >= 0.5 else (partner, i)
        assert (targets.labels[i], targets.others[i]) == (labels[first], labels[second])
        np.testing.assert_allclose(targets.weight[i], max(kept, 1 - kept), rtol=1e-14)
        np.testing.assert_allclose(
            losses[i], -kept * log_probability[i, labels[i]] - (1 - kept) * log_probability[i, labels[partner]], rtol=1e-12)
    assert len(set(targets.weight.numpy())) > 30  # each example has its own


def test_pasted_areas_have_the_moments_of_the_paper():
    """With side s = sqrt(1 - lambda) and a uniform centre, what is left inside the image along one axis has the mean
    s - s^2 / 4 and the mean square s^2 - 5 s^3 / 12. Over a uniform lambda, the area has the moments below."""
    size, count = 64, 20_000
    masks = device.pasted_masks(3, tf.constant(1, tf.int64), 0, count, size, size).numpy()
    area = masks.mean(axis=(1, 2))
    mean, square = 1 / 2 - 2 / 5 / 2 + 1 / 3 / 16, 1 / 3 - 5 / 6 * 2 / 7 + 25 / 144 / 4
    np.testing.assert_allclose(area.mean(), mean, atol=4 * np.sqrt((square - mean**2) / count))
    np.testing.assert_allclose(np.mean(area**2), square, atol=0.005)
    rows, columns = (masks.any(axis=axis) for axis in (2, 1))
    for lines in (rows, columns):  # squares in the upper half are as frequent as in the lower half
        weight = lines.mean(axis=0)
        np.testing.assert_allclose(weight, weight[::-1], atol=0.02)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & rows.any(axis=1)
    np.testing.assert_array_equal(rows[inside].sum(axis=1), columns[inside].sum(axis=1))
    centres = [lines[inside].argmax(axis=1) + lines[inside].sum(axis=1) / 2 for lines in (rows, columns)]
    assert abs(np.corrcoef(*centres)[0, 1]) < 4 / np.sqrt(inside.sum())


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
def test_mixing_refuses_an_odd_share(values):
    """The last example of a part would be mixed with one of another replica, or with nothing."""
    size = 6 if values else 3
    for name in ("mixup", "cutmix"):
        with pytest.raises(SettingError, match=f"--augment={name}.*even"):
            make_config(augment=name, global_batch_size=size, **values)
    make_config(augment="cutout", global_batch_size=size, **values)


# All of them.

KEYS = (device._COLOR, device._CUTOUT, device._MIXUP, device._ERASING, device._CUTMIX, device._RAND_AUGMENT)
ALL = "rand_augment,pca_color,cutout,random_erasing"


def test_the_draws_differ_between_steps_examples_and_kinds():
    """One stream for all would hide the left of each image that is darkened."""
    draw = [device.example_integers(seed + kind, step, 0, 50, 4).numpy()
            for seed in (0, 1) for kind in (0, *KEYS) for step in (0, 1)]
    rows = np.concatenate(draw)
    assert len(np.unique(rows[:, 0])) == len(rows)


def test_what_was_measured_survives_a_checkpoint(pixels):
    """A resumed run would go on with other colours; a checkpoint without them must still be read."""
    back = PixelScaling.from_tensors(pixels.tensors() | {"model/other": np.zeros(1)}, "a checkpoint")
    for name in ("offset", "scale", "mean", "color_axes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pixels, name))
    plain = PixelScaling.from_tensors(PixelScaling(pixels.offset, pixels.scale).tensors(), "a checkpoint")
    assert plain.mean is None and plain.color_axes is None


@pytest.mark.parametrize(("jit_compile", "mixing"), [(False, "mixup"), (True, "mixup"), (True, "cutmix")])
def test_parts_of_a_batch_get_the_rows_of_the_whole(pixels, jit_compile, mixing):
    """A generator with a state, or a number within the part, would augment differently on 1 and N replicas; XLA draws alike."""
    config = make_config(augment=f"{ALL},{mixing}", precision="float64", seed=2**31 - 1)
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


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_lower_precisions_augment_alike(pixels, precision, mixing):
    """Draws in the network's own precision would put squares elsewhere; proofs in float64 would not hold for float32."""
    images, labels = noisy()
    config, step = make_config(augment=f"pca_color,cutout,random_erasing,{mixing}"), tf.constant(3, tf.int64)
    exact, exact_targets = device.augment(config, pixels, tf.constant(images), tf.constant(labels), step, 0)
    rough, targets = device.augment(config, pixels, tf.constant(images, precision), tf.constant(labels), step, 0)
    assert rough.dtype == precision
    tolerance = {"float32": 1e-5, "bfloat16": 0.6, "float16": 0.08}[precision]  # of numbers up to 50
    np.testing.assert_allclose(tf.cast(rough, tf.float64), exact, atol=tolerance)
    assert (targets.labels == exact_targets.labels).numpy().all()


def test_evaluation_sees_images_as_they_are(split, pixels):
    """A validation accuracy of mixed images would choose the wrong checkpoint."""
    plain, augmented = (make_config(augment=names) for names in ("none", f"{ALL},mixup"))
    batch = {"image": tf.constant(split.images[:8])}
    logits = []
    strategy = tf.distribute.get_strategy()
    for config in (plain, augmented):
        state = create_state(config, strategy, 10, split.image_shape, pixels)
        logits.append(make_eval_step(strategy, state)(batch).numpy())
    np.testing.assert_array_equal(*logits)
