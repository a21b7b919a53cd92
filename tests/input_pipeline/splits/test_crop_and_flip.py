"""The borders of "crop" compared with np.pad, the settings that are refused, and the flips that alternate."""

import numpy as np
import pytest
from drivers import mirrored

from input_pipeline import sources, splits
from input_pipeline.common.batches import ONE_REPLICA, Shard
from input_pipeline.common.errors import SettingError
from input_pipeline.config import DataConfig
from input_pipeline.images import resized_crop
from input_pipeline.splits import stream as streaming
from input_pipeline.splits.device import DeviceSplit
from input_pipeline.splits.resident import ResidentSplit
from tests.input_pipeline.splits import test_device, test_resident, test_stream
from tests.input_pipeline.splits.test_resident import SIZE, assert_uniform, joined, take

COUNT, BATCH = 300, 96  # batches span epochs
numbered, source = test_resident.numbered, test_stream.source  # fixtures


def choices_of(images, padding):
    """(top, left, mirrored) of windows of `numbered` images that are padded by up to 6 pixels on each side."""
    top, left, turned = test_resident.choices_of(images.astype(int))
    return top + padding - test_resident.PADDING, left + padding - test_resident.PADDING, turned


@pytest.mark.parametrize(("padding", "border", "mode"), [
    (None, "reflect", "reflect"), (5, "reflect", "reflect"), (5, "zeros", "constant"), (0, "reflect", "reflect")])
def test_windows_equal_numpys_padding(numbered, padding, border, mode):
    split, width = ResidentSplit(numbered.images, numbered.labels, padding, border), 2 if padding is None else padding
    batches = take(split.training_batches(7, 0, 96, ("crop", "flip")), 70)
    images, labels = joined(batches, "image"), joined(batches, "label")
    padded = np.pad(numbered.images, ((0, 0), (width, width), (width, width), (0, 0)), mode)
    top, left, turned = choices_of(images, width)
    for image, label, y, x, is_turned in zip(images, labels, top, left, turned, strict=True):
        window = padded[label, y : y + SIZE, x : x + SIZE]
        np.testing.assert_array_equal(image, window[:, ::-1] if is_turned else window)
    places = 2 * width + 1
    assert_uniform(np.bincount((top * places + left) * 2 + turned, minlength=2 * places**2))


@pytest.mark.parametrize(("padding", "border", "shape", "message"), [
    (9, "zeros", (8, 12), "--crop_padding=9: is too wide for --crop_border=zeros and images of 8 x 12; give at most 8"),
    (8, "reflect", (12, 8), "--crop_padding=8: is too wide for --crop_border=reflect and images of 12 x 8; give at most 7"),
    (None, "zeros", (64, 7), "--crop_padding=: an eighth of the height, 8, is too wide .* images of 64 x 7; give at most 7"),
])
def test_a_border_that_is_too_wide_is_refused(padding, border, shape, message):
    """Windows would show the neighbours of an image. One pixel less is accepted."""
    images, labels = np.zeros((4, *shape, 3), np.uint8), np.zeros(4, np.int32)
    with pytest.raises(SettingError, match=f"^{message}$"):
        ResidentSplit(images, labels, padding, border).training_batches(0, 0, 4, ("crop",))
    ResidentSplit(images, labels, padding, border).training_batches(0, 0, 4, ("flip",))
    widest = (8 if padding is None else padding) - 1
    ResidentSplit(images, labels, widest, border).training_batches(0, 0, 4, ("crop",))


@pytest.mark.parametrize("read", ["memory", "device"])
def test_the_settings_reach_the_split(data_dir, read):
    config = DataConfig(data_dir=str(data_dir), augment="crop", crop_padding=31, crop_border="reflect", input=read)
    split = splits.open_split(config, sources.open_source(config), "test[:8]", "train_split", log=lambda line: None)
    assert (split.padding, split.border) == (31, "reflect")


@pytest.mark.parametrize(("read", "values", "message"), [
    ("memory", {"crop_padding": 33}, "--crop_padding=33: .* give at most 32"),
    ("device", {"crop_padding": 32, "crop_border": "reflect"}, "--crop_padding=32: .* give at most 31"),
    ("stream", {"crop_padding": 4}, "--crop_padding=4: a stream .* leave it out, or give --input=memory"),
    ("stream", {"crop_padding": 0}, "--crop_padding=0: a stream"),
    ("stream", {"crop_border": "reflect"}, "--crop_border=reflect: a stream .* leave it out, or give --input=memory"),
])
def test_settings_that_cannot_be_followed_are_refused_at_opening(data_dir, read, values, message):
    """Before anything is decoded. If a stream ignored them, the run would be another experiment."""
    config, lines = DataConfig(data_dir=str(data_dir), augment="crop,flip", input=read, **values), []
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        splits.open_split(config, sources.open_source(config), "test[:8]", "train_split", log=lines.append)
    assert "\n" not in str(caught.value)
    assert not lines


def alternating(kind, numbered, source, names=("alternating_flip",)):
    """A function (seed, first step, how many batches, Shard) -> labels and whether they are mirrored, of 300 images."""
    def draw(seed, first_step, count, shard=ONE_REPLICA, batch_size=BATCH):
        def open_batches(split, shard):
            return split.training_batches(seed, first_step, batch_size, names, shard)

        if kind == "stream":
            batches = take(open_batches(test_stream.stream(source), shard), count)
            images = joined(batches, "image")
            turned = images[:, 0, 0, 1] > images[:, 0, 1, 1]
        else:
            split = (ResidentSplit if kind == "memory" else DeviceSplit)(numbered.images[:COUNT], numbered.labels[:COUNT])
            batches = test_device.through(mirrored(1), split, lambda split, _: open_batches(split, shard), count)
            turned = test_resident.choices_of(joined(batches, "image").astype(int))[2]
        return joined(batches, "label"), turned

    return draw


def epochs_of(draw, seed, count):
    """Whether each image is mirrored, bool [count, 300], from whole epochs."""
    labels, turned = (values.reshape(count, COUNT) for values in draw(seed, 0, count, batch_size=COUNT))
    assert len({tuple(epoch) for epoch in labels}) == count
    return np.take_along_axis(turned, np.argsort(labels, axis=1), axis=1)


@pytest.mark.parametrize("names", [("alternating_flip",), ("crop", "alternating_flip")])
@pytest.mark.parametrize("kind", ["memory", "device", "stream"])
def test_two_epochs_in_a_row_show_each_image_from_both_sides(numbered, source, monkeypatch, kind, names):
    """With "flip", half of the images come twice from the same side. The order of a stream must not matter."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 16)
    draw = alternating(kind, numbered, source, names)
    of_seeds = [epochs_of(draw, seed, 5) for seed in (3, 4)]
    for epochs in of_seeds:
        np.testing.assert_array_equal(epochs, [epochs[0], ~epochs[0]] * 2 + [epochs[0]])
        assert abs(epochs[0].mean() - 0.5) < 4 * np.sqrt(0.25 / COUNT)
    assert abs((of_seeds[0][0] == of_seeds[1][0]).mean() - 0.5) < 4 * np.sqrt(0.25 / COUNT)


@pytest.mark.parametrize("kind", ["memory", "device", "stream"])
def test_alternating_flips_after_a_resume_and_on_replicas(numbered, source, kind):
    draw = alternating(kind, numbered, source, ("crop", "alternating_flip"))
    labels, turned = draw(3, 0, 12)
    for step in (3, 4, 10):  # batch 3 contains the end of the first epoch
        for resumed, whole in zip(draw(3, step, 2), (labels, turned), strict=True):
            np.testing.assert_array_equal(resumed, whole[step * BATCH : (step + 2) * BATCH])
    parts = [[values.reshape(6, -1) for values in draw(3, 2, 6, Shard(replica, 1, 4))] for replica in range(4)]
    for pieces, whole in zip(zip(*parts, strict=True), (labels, turned), strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1).ravel(), whole[2 * BATCH : 8 * BATCH])


def test_alternating_flips_change_nothing_else(numbered, source):
    """The order and the windows are those of "flip". Which half comes first is independent of both."""
    both = [("crop", name) for name in ("flip", "alternating_flip")]
    by_coin, by_turns = (take(numbered.training_batches(7, 0, 700, names), 20) for names in both)
    for before, after in zip(by_coin, by_turns, strict=True):
        np.testing.assert_array_equal(before["label"], after["label"])
        for expected, found in zip(choices_of(before["image"], 2)[:2], choices_of(after["image"], 2), strict=False):
            np.testing.assert_array_equal(expected, found)
    top, left, turned = choices_of(joined(by_turns, "image"), 2)
    assert_uniform(np.bincount((top * 5 + left) * 2 + turned, minlength=50))
    first = choices_of(by_turns[0]["image"], 2)[2]
    assert_uniform(np.bincount(np.arange(700) // 70 * 2 + first, minlength=20))  # by the place in the first epoch
    split = test_stream.stream(source)
    by_coin, by_turns = (take(split.training_batches(7, 0, 300, names), 3) for names in both)
    for before, after in zip(by_coin, by_turns, strict=True):
        same = (before["image"] == after["image"]).all(axis=(1, 2, 3))
        turned = (before["image"] == after["image"][:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same ^ turned).all()
        assert same.any()
        assert turned.any()


def test_alternating_flips_come_before_a_resized_crop(numbered):
    names = ("alternating_flip", "random_resized_crop")
    plain, cut = (take(numbered.training_batches(3, 1, 700, chosen), 1)[0] for chosen in (names[:1], names))
    corners = resized_crop.boxes(resized_crop.epoch_draws(3, 1, 700), SIZE, SIZE)
    np.testing.assert_array_equal(cut["image"], resized_crop.crop_batch(plain["image"], corners))
