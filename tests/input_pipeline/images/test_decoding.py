"""The image functions compared with NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.images import decoding as augment


def noise(height, width, channels=3):
    """A random image, uint8 [height, width, channels]."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def numpy_resize(image, size):
    """Triangle filter, as wide as the pixels of the smaller image; float64 [*size, channels]."""
    def weights(old, new):
        scale = old / new
        distance = np.abs((np.arange(new)[:, None] + 0.5) * scale - (np.arange(old) + 0.5))
        matrix = np.maximum(0, 1 - distance / max(scale, 1))
        return matrix / matrix.sum(axis=1, keepdims=True)

    rows, columns = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    return np.einsum("yr,rcd,xc->yxd", rows, image, columns)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_any_kind_gets_three_channels(channels):
    image = noise(9, 7, channels)
    decoded = augment.decode(tf.io.encode_png(image)).numpy()
    assert decoded.dtype == np.uint8
    expected = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_gets_three_channels(channels):
    flat = np.full((9, 7, channels), 100, np.uint8)
    decoded = augment.decode(tf.io.encode_jpeg(flat, quality=100)).numpy()
    assert decoded.shape == (9, 7, 3)
    np.testing.assert_allclose(decoded, 100, atol=1)


def test_decoding_works_where_shapes_are_not_known():
    decoded = tf.data.Dataset.from_tensors(tf.io.encode_png(noise(4, 5))).map(augment.decode)
    assert decoded.element_spec.shape.as_list() == [None, None, 3]


@pytest.mark.parametrize(("height", "width", "size"), [(20, 30, 10), (30, 20, 13), (8, 12, 16), (17, 17, 5), (50, 7, 9)])
def test_the_short_side_gets_the_size(height, width, size):
    image = noise(height, width)
    resized = augment.resize_short_side(image, size).numpy()
    short = min(height, width)
    expected_shape = [size if side == short else round(side * size / short) for side in (height, width)]
    assert resized.shape == (*expected_shape, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, numpy_resize(image, expected_shape), atol=0.51)


@pytest.mark.parametrize(("size", "wanted", "scaled"), [
    ((20, 30), (10, 24), (16, 24)), ((30, 20), (24, 10), (24, 16)), ((7, 9), (14, 9), (14, 18)), ((12, 8), (12, 8), (12, 8))])
def test_a_batch_covers_what_is_not_square(size, wanted, scaled):
    images = np.stack([noise(*size), 255 - noise(*size)])
    covering = augment.resize_to_cover(tf.constant(images), *wanted).numpy()
    np.testing.assert_allclose(covering, [numpy_resize(image, scaled) for image in images], atol=0.51)
    top, left = (scaled[0] - wanted[0]) // 2, (scaled[1] - wanted[1]) // 2
    middle = covering[:, top : top + wanted[0], left : left + wanted[1]]
    np.testing.assert_array_equal(augment.central_crop(tf.constant(covering), *wanted), middle)


def test_a_line_of_pixels_is_not_made_a_huge_image():
    """Scaled to a height of 32 pixels it would have 614 million, and a still longer one would kill the process."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="too long and narrow"):
        augment.resize_short_side(np.zeros((1, 600_000, 3), np.uint8), 32)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = noise(11, 20)
    np.testing.assert_array_equal(augment.resize_short_side(image, 11), image)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 8, 0, 0), (8, 13, 0, 2), (11, 8, 1, 0), (12, 14, 2, 3)])
def test_the_central_crop(height, width, top, left):
    image = noise(height, width)
    np.testing.assert_array_equal(augment.central_crop(image, 8), image[top : top + 8, left : left + 8])


def cut(image, size, margin, seed, flip=True):
    """A random window of an image, as training cuts it."""
    window_of, mirrored = augment.random_window(seed, size, margin)
    return augment.decode_window(tf.io.encode_png(image), window_of, size, mirrored if flip else None)


@pytest.fixture(scope="module")
def windows():
    """1,000 random 8 x 8 windows of a 12 x 13 image whose pixels contain their row and column."""
    image = np.stack([*np.mgrid[0:12, 0:13], np.zeros((12, 13))], axis=-1).astype(np.uint8)
    seeds = tf.data.Dataset.range(1000).map(lambda position: tf.stack([tf.constant(2**31 - 1, tf.int64), position]))
    return image, next(iter(seeds.map(lambda seed: cut(image, 8, 4, seed)).batch(1000))).numpy().astype(int)


def test_random_windows_equal_numpy(windows):
    image, cuts = windows
    mirrored = cuts[:, 0, 0, 1] > cuts[:, 0, 1, 1]
    tops, lefts = cuts[:, 0, 0, 0], np.where(mirrored, cuts[:, 0, -1, 1], cuts[:, 0, 0, 1])
    for window, top, left, turned in zip(cuts, tops, lefts, mirrored, strict=True):
        expected = image[top : top + 8, left : left + 8]
        assert (window == (expected[:, ::-1] if turned else expected)).all()
    assert len({*zip(tops, lefts, mirrored, strict=True)}) == 5 * 6 * 2


def test_random_windows_and_flips_are_uniform_over_all_places():
    def choice(position):
        window_of, mirrored = augment.random_window(tf.stack([tf.constant(2**31 - 1, tf.int64), position]), 8, 4)
        return tf.concat([window_of(12, 13), [tf.cast(mirrored, tf.int32)]], axis=0)

    top, left, rows, columns, mirrored = next(iter(tf.data.Dataset.range(20_000).map(choice).batch(20_000))).numpy().T
    assert (rows == 8).all() and (columns == 8).all()
    counts = np.bincount((top * 6 + left) * 2 + mirrored)
    assert len(counts) == 5 * 6 * 2  # the last place occurs, and none beyond it
    expected = 20_000 / len(counts)
    freedom = len(counts) - 1
    assert np.sum((counts - expected) ** 2) / expected < freedom + 4 * np.sqrt(2 * freedom)


def test_a_random_window_is_a_function_of_the_seed_and_flips_only_when_asked():
    image = noise(12, 13)
    for position in range(10):
        seed = tf.constant([3, position], tf.int64)
        plain, again, flipped = (cut(image, 8, 4, seed, flip).numpy() for flip in (False, False, True))
        np.testing.assert_array_equal(plain, again)
        assert (flipped == plain).all() or (flipped == plain[:, ::-1]).all()


def test_where_there_is_no_room_the_window_is_the_image():
    image = noise(8, 8)
    np.testing.assert_array_equal(cut(image, 8, 0, tf.constant([0, 0], tf.int64), False), image)


@pytest.mark.parametrize(("height", "width", "side"), [(375, 500, 328), (500, 333, 291), (256, 256, 224), (1, 9, 1)])
def test_the_window_is_that_of_the_image_scaled_to_256(height, width, side):
    """A window of 224 pixels of the original would show another part of it, and would not fit in a smaller image."""
    for position in range(20):
        top, left, rows, columns = augment.random_window(tf.constant([0, position], tf.int64), 224, 32)[0](height, width).numpy()
        assert rows == columns == side and 0 <= top <= height - side and 0 <= left <= width - side


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg], ids=["png", "jpeg"])
@pytest.mark.parametrize("window", [(3, 5, 16, 16), (2, 1, 31, 32), (0, 4, 20, 9), (1, 0, 33, 20), (0, 0, 90, 120)])
def test_a_window_is_scaled_as_in_numpy(encode, window):
    """Unchanged, bilinear up to twice the size, antialiased above that. Otherwise thin lines would come and go."""
    rows, columns = np.mgrid[0:90, 0:120]
    image = np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    encoded = encode(image)
    top, left, height, width = window
    part = augment.decode(encoded).numpy()[top : top + height, left : left + width]
    result = augment.decode_window(encoded, lambda *_: tf.constant(window), 16, tf.constant(True)).numpy()
    assert result.dtype == np.uint8
    small = max(height, width) <= 32
    expected = part if part.shape == (16, 16, 3) else (numpy_resize(part, (16, 16)) if not small else bilinear(part, 16))
    np.testing.assert_allclose(result[:, ::-1], expected, atol=0.51 if encode is tf.io.encode_png else 4)


def bilinear(image, size):
    """Each pixel from the 2 x 2 around its centre; float64."""
    def weights(old):
        place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))

    return np.einsum("yr,rcd,xc->yxd", weights(image.shape[0]), image.astype(float), weights(image.shape[1]))
