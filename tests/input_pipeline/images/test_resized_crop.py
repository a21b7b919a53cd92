"""Inception's training crop: its distribution, its pixels compared with NumPy, its use in both kinds of split; the covariance."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import sources, splits
from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import SettingError
from input_pipeline.config import DataConfig
from input_pipeline.images import decoding as augment
from input_pipeline.images import resized_crop
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming
from input_pipeline.splits.resident import ResidentSplit

CHOICE = ("random_resized_crop",)


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def smooth(height, width):
    """A smooth image, which a lossy format preserves."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)
    return np.stack(channels, axis=-1).astype(np.uint8)


def numpy_window(draws, height, width):
    """One window computed by hand, in the precision of the graph."""
    for area, ratio, down, across in draws.reshape(10, 4).astype(np.float64):
        area, ratio = (0.08 + 0.92 * area) * height * width, (3 / 4) * (16 / 9) ** ratio
        rows, columns = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
        if rows <= height and columns <= width:
            return int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns
    return 0, 0, height, width


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (20, 300)])
def test_windows_equal_numpy_and_lie_within_the_image(height, width):
    """A window that extends beyond the image would make the JPEG decoder fail, perhaps after hours."""
    draws = resized_crop.epoch_draws(0, 0, 2000)
    windows = resized_crop.windows(tf.constant(draws), height, width).numpy()
    expected = np.array([numpy_window(draw, height, width) for draw in draws])
    assert (windows == expected).all(axis=1).mean() > 0.995  # float32 rounds a few differently
    assert windows[:, :2].min() >= 0 and windows[:, 2:].min() >= 1
    assert (windows[:, :2] + windows[:, 2:] <= (height, width)).all()


def test_windows_at_the_ends_of_the_draws_lie_within_the_image():
    last = np.nextafter(np.float32(1), np.float32(0))
    draws = np.array([np.zeros(40), np.full(40, last), np.tile([0.5, 0.5, last, last], 10)], np.float32)
    for height, width in ((1, 1), (2, 3), (4000, 3999)):
        windows = resized_crop.windows(tf.constant(draws), height, width).numpy()
        assert (windows[:, :2] >= 0).all() and (windows[:, 2:] >= 1).all()
        assert (windows[:, :2] + windows[:, 2:] <= (height, width)).all()


def test_areas_and_shapes_are_those_of_the_paper():
    """The image is so large that rounding does not matter. A ratio that is not logarithmic would prefer one side."""
    draws = resized_crop.epoch_draws(3, 1, 50_000)
    _, _, rows, columns = resized_crop.windows(tf.constant(draws), 3000, 3000).numpy().T.astype(np.float64)
    area, ratio = rows * columns / 3000**2, columns / rows
    assert 0.0799 < area.min() < 0.081 and area.max() > 0.99
    assert 0.7495 < ratio.min() < 0.752 and 1.330 < ratio.max() < 1.334
    assert abs(np.log(ratio).mean()) < 4 * np.log(4 / 3) / np.sqrt(3 * 50_000)
    small = area < 0.5  # any shape of this area fits, so the area is uniform
    counts = np.histogram(area[small], bins=21, range=(0.08, 0.5))[0]
    expected = counts.mean()
    assert np.sum((counts - expected) ** 2) / expected < 20 + 4 * np.sqrt(40)


def test_a_batch_equals_bilinear_sampling_in_numpy():
    """Detects swapped rows and columns, and a black line at the border where rounding leaves the image."""
    images, draws = noise(50, 12, 12, 3), resized_crop.epoch_draws(0, 5, 50)
    draws[:3] = np.nextafter(np.float32(1), np.float32(0))
    draws[0, ::2] = 0.5
    cut = resized_crop.crop_batch(images, resized_crop.boxes(draws, *images.shape[1:3])).numpy()
    assert cut.dtype == np.uint8
    windows = resized_crop.windows(tf.constant(draws), 12, 12).numpy()
    for image, result, (top, left, rows, columns) in zip(images, cut, windows, strict=True):
        down, across = top + np.linspace(0, rows - 1, 12), left + np.linspace(0, columns - 1, 12)
        by_rows, by_columns = (np.maximum(0, 1 - np.abs(place[:, None] - np.arange(12))) for place in (down, across))
        expected = np.einsum("yr,rcd,xc->yxd", by_rows, image.astype(np.float64), by_columns)
        np.testing.assert_allclose(result, expected, atol=0.51)


@pytest.mark.slow
def test_the_resident_path_crops_before_anything_else_changes():
    """The order, the flips and the labels are those of a run without it. Any start and any shard gives the same rows."""
    split = ResidentSplit(noise(70, 8, 8, 3), np.arange(70, dtype=np.int32))
    plain, cut = (list(split.training_batches(3, 0, 32, names).take(4)) for names in (("flip",), ("flip", *CHOICE)))
    for step, (before, after) in enumerate(zip(plain, cut, strict=True)):
        np.testing.assert_array_equal(before["label"], after["label"])
        positions = np.arange(step * 32, step * 32 + 32)
        draws = np.stack([resized_crop.epoch_draws(3, p // 70, 70)[p % 70] for p in positions])
        corners = resized_crop.boxes(draws, *before["image"].shape[1:3])
        np.testing.assert_array_equal(after["image"], resized_crop.crop_batch(before["image"].numpy(), corners))
    shards = [Shard(replica, 1, 4) for replica in range(4)]
    parts = [next(iter(split.training_batches(3, 2, 32, ("flip", *CHOICE), shard)))["image"] for shard in shards]
    np.testing.assert_array_equal(np.concatenate(parts), cut[2]["image"])


def cut(encoded, size, seed, flip):
    """A random window, as training cuts it."""
    window_of, mirrored = resized_crop.random_window(seed)
    return augment.decode_window(encoded, window_of, size, mirrored if flip else None)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg], ids=["png", "jpeg"])
def test_an_encoded_image_equals_crop_and_resize(encode, flip):
    """Decoding only the window must give its pixels. If the wrong half were mirrored, half of them would differ."""
    encoded = encode(smooth(60, 90))
    whole = augment.decode(encoded).numpy()
    mirrored_ones = 0
    for position in range(8):
        seed = tf.constant([5, position], tf.int64)
        draws = tf.random.stateless_uniform([41], seed)
        top, left, rows, columns = resized_crop.windows(draws[:40], 60, 90).numpy()
        window = tf.image.resize(whole[top : top + rows, left : left + columns], [24, 24], antialias=True).numpy()
        mirrored = flip and bool(draws[40] < 0.5)
        mirrored_ones += mirrored
        result = cut(encoded, 24, seed, flip).numpy()
        assert result.dtype == np.uint8
        np.testing.assert_allclose(result, window[:, ::-1] if mirrored else window, atol=4)  # the colours differ at the edge
    assert mirrored_ones > 0 or not flip


def test_a_jpeg_is_decoded_by_its_window_alone():
    """Decoding whole large images for windows of 8 % would take most of the time."""
    encoded = tf.io.encode_jpeg(smooth(16, 16))

    @tf.function
    def function(encoded):
        return cut(encoded, 8, tf.constant([0, 0], tf.int64), True)

    graph = function.get_concrete_function(encoded).graph.as_graph_def()
    branches = [{node.op for node in function.node_def} for function in graph.library.function]
    of_jpeg = [operations for operations in branches if "DecodeAndCropJpeg" in operations]
    assert len(of_jpeg) == 2  # without EXIF, and with
    assert all("DecodeImage" not in operations for operations in of_jpeg)


@pytest.fixture(scope="module")
def source(data_dir):
    return sources.open_source(DataConfig(data_dir=str(data_dir)))


def test_the_streaming_path_cuts_by_the_position_in_the_run(source):
    """If windows were drawn by the place within a batch or a replica, the same windows would repeat."""
    split = streaming.StreamingSplit(source, "train[:40]", 40, 28, 4)
    whole = list(split.training_batches(1, 0, 16, ("flip", *CHOICE)).take(4))
    later = next(iter(split.training_batches(1, 3, 16, ("flip", *CHOICE), Shard(1, 1, 2))))
    np.testing.assert_array_equal(later["image"], whole[3]["image"][8:])
    epochs = tf.data.Dataset.range(1)  # in a graph, as the split does it: outside of one, TensorFlow's global seed matters
    records = epochs.flat_map(lambda epoch: source.shuffled_records("train[:40]", 1, epoch, streaming.SHUFFLE_BUFFER)).take(16)
    for position, (_, record) in enumerate(records):
        seed = tf.constant([1, position], tf.int64)
        expected = cut(source.parse(record)["image"], 28, seed, True)
        np.testing.assert_array_equal(whole[0]["image"][position], expected)


def test_evaluation_of_a_stream_looks_at_the_middle_as_with_crop(source):
    """A network trained on parts of objects is more accurate on the middle 7/8 than on the whole image."""
    for names, margin in (("crop", 4), ("random_resized_crop,flip", 4), ("flip", 0)):
        config = DataConfig(augment=names, input="stream", image_size=28)
        assert splits.open_split(config, source, "test", "test_split", log=lambda line: None).margin == margin


def test_two_crops_are_refused():
    with pytest.raises(SettingError, match="--augment=crop,random_resized_crop.*exclude"):
        DataConfig(augment="crop,random_resized_crop")


def test_the_covariance_equals_numpy_on_both_paths(source, monkeypatch):
    """For parts of different sizes, and for the middle squares of the first 2,000 examples of a stream."""
    images = noise(9, 5, 7, 3)
    expected = np.cov(images.reshape(-1, 3).astype(np.float64), rowvar=False, bias=True)
    held = ResidentSplit(images, np.zeros(9, np.int32))
    for pixels in (35, 70, 10**6):  # in parts of one, two and all images
        monkeypatch.setattr(resident, "SUMMED_PIXELS", pixels)
        np.testing.assert_allclose(held.pixel_covariance(), expected, rtol=1e-11)
    split = streaming.StreamingSplit(source, "train[:30]", 30, 28, 4)
    records = [record for _, record in source.records("train[:30]")]
    central = [augment.central_crop(augment.decode(source.parse(record)["image"]), 28) for record in records]
    expected = np.cov(np.reshape(central, (-1, 3)).astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(split.pixel_covariance(), expected, rtol=1e-11)
