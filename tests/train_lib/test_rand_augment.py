"""RandAugment: every operation against Pillow on uint8 images, and which operations are chosen."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from drivers import make_config
from PIL import Image, ImageEnhance, ImageOps
from tensorflow.python.framework.kernels import get_registered_kernels_for_op

from tests.train_lib.test_augment import chi_squared_is_fair
from train_lib import augment as device
from train_lib.rand_augment import OPERATIONS, rand_augment
from train_lib.state import PixelScaling

GREY = (128, 128, 128)
ENHANCERS = {"color": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
WITHOUT_SIGN = ("identity", "autocontrast", "equalize", "solarize", "posterize")
SCALINGS = {
    "zero_one": PixelScaling(np.zeros(3), np.full(3, 1 / 255)),
    "minus_one_one": PixelScaling(np.full(3, 127.5), np.full(3, 1 / 127.5)),
    "standardized": PixelScaling(np.array([125.31, 122.95, 113.87]), 1 / np.array([62.99, 62.09, 66.7])),
}


def pictures(height=32, width=32):
    """Noise, low contrast, three colours, one colour, a gradient with one channel of one value, dark noise: uint8 [6, ...]."""
    generator = np.random.default_rng(height)
    shape = (height, width, 3)
    gradient = np.linspace(0, 255, height * width * 3).reshape(shape)
    gradient[..., 1] = 40
    images = [
        generator.integers(0, 256, shape), generator.normal(120, 20, shape).clip(0, 255), generator.choice([3, 90, 200], shape),
        np.full(shape, 77), gradient, generator.integers(0, 30, shape),
    ]
    return np.stack(images).astype(np.uint8)


def integers_of(name, sign, count):
    """Draws that choose an operation: any in the range that belongs to it."""
    low = -(-OPERATIONS.index(name) * 2**32 // len(OPERATIONS))
    high = -(-(OPERATIONS.index(name) + 1) * 2**32 // len(OPERATIONS))
    signs = np.linspace(0, 2**31 - 1, count, dtype=np.int64) + (2**31 if sign < 0 else 0)
    return np.stack([np.linspace(low, high - 1, count, dtype=np.int64), signs], axis=1).astype(np.uint32)


def ours(images, integers, magnitude):
    return rand_augment(tf.constant(images, tf.float32), tf.constant(integers), magnitude).numpy()


def by_pillow(name, image, sign, magnitude):
    """The operation as Cubuk et al. write it, uint8 [height, width, 3]."""
    image = Image.fromarray(image)
    width, height = image.size
    shear, shift = sign * 0.03 * magnitude, sign * magnitude / 10 * 150 / 331
    affine = {
        "shear_x": (1, shear, 0, 0, 1, 0), "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift * width, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, shift * height),
    }
    if name in affine:
        image = image.transform(image.size, Image.Transform.AFFINE, affine[name], fillcolor=GREY)
    elif name in ENHANCERS:
        image = getattr(ImageEnhance, ENHANCERS[name])(image).enhance(1 + sign * 0.09 * magnitude)
    elif name == "rotate":
        image = image.rotate(-sign * 3 * magnitude, fillcolor=GREY)
    elif name == "solarize":
        image = ImageOps.solarize(image, 256 - 25.6 * magnitude)
    elif name == "posterize":
        image = ImageOps.posterize(image, 8 - round(0.4 * magnitude))
    elif name != "identity":
        image = getattr(ImageOps, name)(image)
    return np.asarray(image)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_that_of_pillow(name):
    """Equal but for fractions, which Pillow cuts off: there a value may be one higher or lower."""
    rounds = name in ENHANCERS or name == "autocontrast"
    for images in (pictures(), pictures(20, 28)):
        for magnitude, sign in [(9.0, 1), (9.0, -1), (10.0, 1), (5.5, -1), (1.0, 1), (1.0, -1)]:
            result = ours(images, integers_of(name, sign, len(images)), magnitude)
            expected = np.stack([by_pillow(name, image, sign, magnitude) for image in images])
            np.testing.assert_allclose(result, expected, rtol=0, atol=1 if rounds else 0)
            assert np.array_equal(result, result.astype(np.uint8))
            if magnitude == 9 and name != "identity":
                assert np.abs(result - images).mean() > 1  # so that doing nothing would fail


def test_results_are_rounded_to_the_nearest_value():
    """Cutting off would darken each image a little: by hand in NumPy, where the factors are exact in float32 too."""
    images, magnitude = pictures()[:2].astype(np.float64), 0.5 / 0.09  # factors 1.5 and 0.5
    grey = np.stack([np.asarray(Image.fromarray(image.astype(np.uint8)).convert("L"))[..., None] for image in images])
    mean = np.floor(grey.mean(axis=(1, 2), keepdims=True) + 0.5)
    for sign, factor in ((1, 1.5), (-1, 0.5)):
        for name, towards in (("brightness", 0), ("color", grey), ("contrast", mean)):
            expected = np.clip(np.floor(towards + factor * (images - towards) + 0.5), 0, 255)
            np.testing.assert_array_equal(ours(images, integers_of(name, sign, 2), magnitude), expected)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
def test_magnitude_0_changes_nothing(name):
    images = pictures(20, 28)
    for sign in (1, -1):
        np.testing.assert_array_equal(ours(images, integers_of(name, sign, len(images)), 0.0), images)


def test_the_strength_grows_with_the_magnitude():
    """A strength that is not read, or that stands for another operation, would leave some at one strength."""
    images = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None, None], (1, 1, 32, 3))
    images = np.concatenate([images, images.transpose(0, 2, 1, 3)], axis=2)
    images[..., 0] //= 2
    for name in OPERATIONS[3:]:
        results = [ours(images, integers_of(name, -1, 1), magnitude) for magnitude in (0.0, 3.0, 6.0, 10.0)]
        change = [np.abs(result - images).mean() for result in results]
        assert np.all(np.diff(change) > 0), (name, change)


def test_each_image_of_a_batch_has_its_own_operation():
    """And layers follow one another: two layers are what one does after the other."""
    generator = np.random.default_rng(1)
    images = np.tile(pictures(16, 16), (40, 1, 1, 1))
    integers = generator.integers(0, 2**32, (len(images), 4), np.uint32)
    batch = ours(images, integers, 7.0)
    first = ours(images, integers[:, :2], 7.0)
    np.testing.assert_array_equal(ours(first, integers[:, 2:], 7.0), batch)
    for i in range(0, len(images), 3):
        np.testing.assert_array_equal(ours(images[i : i + 1], integers[i : i + 1], 7.0)[0], batch[i])


def test_the_operations_and_signs_are_chosen_with_equal_probability():
    """Each shows in what becomes of one image of noise; the two layers must not be the same draw."""
    probe, count, pixels = pictures(16, 16)[:1], 20_000, SCALINGS["zero_one"]
    names = [(name, sign) for name in OPERATIONS for sign in (1, -1) if sign > 0 or name not in WITHOUT_SIGN]
    known = {ours(probe, integers_of(name, sign, 1), 9.0).tobytes(): i for i, (name, sign) in enumerate(names)}
    assert len(known) == len(names) == 23
    probabilities = np.array([1 if name in WITHOUT_SIGN else 0.5 for name, _ in names]) / 14
    config = make_config(augment="rand_augment", rand_augment="1,9")
    images = tf.tile(device.scale_pixels(probe, pixels, tf.float32), [count, 1, 1, 1])
    results, _ = device.augment(config, pixels, images, tf.zeros([count], tf.int32), tf.constant(3, tf.int64), 0)
    results = device._unscaled(results, pixels).numpy()
    assert chi_squared_is_fair(np.bincount([known[result.tobytes()] for result in results], minlength=23), probabilities)
    twice = np.floor(device.example_integers(device._RAND_AUGMENT, 3, 0, count, 4).numpy()[:, ::2] * (14 / 2**32)).astype(int)
    assert chi_squared_is_fair(np.bincount(twice[:, 0] * 14 + twice[:, 1], minlength=196))


@pytest.mark.parametrize("precision", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", SCALINGS)
def test_the_images_of_a_step_equal_the_definition_on_uint8(name, precision):
    """Under every scale of the network's input, in every precision that holds whole pixels, and with the documented draws."""
    pixels, images = SCALINGS[name], np.tile(pictures(20, 28), (6, 1, 1, 1))
    config = make_config(augment="rand_augment", rand_augment="3,6.5", seed=11)
    scaled = (images - pixels.offset) * pixels.scale
    result, targets = device.augment(
        config, pixels, tf.constant(scaled, precision), tf.range(36), tf.constant(5, tf.int64), tf.constant(64))
    expected = ours(images, device.example_integers(11 + device._RAND_AUGMENT, 5, 64, 36, 6).numpy(), 6.5)
    assert result.dtype == precision and targets.others is None and np.mean(expected != images) > 0.5
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 3e-3}[precision]
    np.testing.assert_allclose(tf.cast(result, tf.float64), (expected - pixels.offset) * pixels.scale, atol=tolerance)


def test_xla_makes_the_same_pixels():
    """Compiled code may contract products and sums; no pixel may change by that."""
    images = np.tile(pictures(), (30, 1, 1, 1))
    integers = np.random.default_rng(2).integers(0, 2**32, (len(images), 4), np.uint32)
    compiled = tf.function(rand_augment, jit_compile=True)(tf.constant(images, tf.float32), tf.constant(integers), 9.0)
    np.testing.assert_array_equal(compiled, ours(images, integers, 9.0))


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="this TensorFlow knows no GPU")
@pytest.mark.parametrize("names", ["rand_augment", "random_erasing", "cutmix"])
def test_every_operation_has_a_kernel_for_gpus(names):
    """Without one, TensorFlow would send the images to the host and back, or end the run."""
    config, pixels = make_config(augment=names), SCALINGS["standardized"]
    arguments = [tf.TensorSpec([None, 32, 32, 3]), *(tf.TensorSpec(shape, dtype) for shape, dtype in (
        ([None], tf.int32), ([], tf.int64), ([], tf.int32)))]
    graph = tf.function(functools.partial(device.augment, config, pixels)).get_concrete_function(*arguments).graph

    def fits(node, kernel):
        allowed = {constraint.name: constraint.allowed_values.list.type for constraint in kernel.constraint}
        return kernel.device_type in ("GPU", "DEFAULT") and all(
            node.get_attr(name).as_datatype_enum in types for name, types in allowed.items())

    for node in graph.get_operations():
        kernels = get_registered_kernels_for_op(node.type).kernel
        assert any(fits(node, kernel) for kernel in kernels), (node.type, [value.dtype for value in node.inputs])
