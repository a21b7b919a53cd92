"""The rows that the benchmark compares its input with do the work that their names promise. No test checks the speed."""

import json
import math
import time

import numpy as np
import pytest
import tensorflow as tf
from source_files import encoded

from input_pipeline.common.batches import timed
from input_pipeline.config import DataConfig
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split
from input_pipeline.splits.resident import ResidentSplit
from tests.train_lib.modes.test_benchmark import bench_of, run_benchmark
from train_lib.modes.benchmark import inputs as compared
from train_lib.modes.benchmark import verdict as benchmark_report
from train_lib.modes.benchmark.measure import CLASSES
from train_lib.modes.benchmark.rows import INPUTS, OF_A_STREAM, REST_INTERVAL, RowFailed, rest

COUNT, SIZE = 60, 16


def images_and_labels():
    """Random images whose labels are their positions."""
    images = np.random.default_rng(0).integers(1, 256, (COUNT, SIZE, SIZE, 3), np.uint8)  # no zero: that is padding
    return images, np.arange(COUNT, dtype=np.int32)


def epoch_of(dataset):
    batches = [tuple(part.numpy() for part in batch) for batch in dataset]
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


@pytest.mark.parametrize("name", ["tutorial", "canonical"])
def test_an_unaugmented_epoch_is_a_permutation_of_the_images(name):
    """A pipeline that drops, repeats or mixes up examples would not be a fair comparison."""
    images, labels = images_and_labels()
    make, settings = (compared.tutorial, (12,)) if name == "tutorial" else (compared.canonical, (12, ()))
    ours, order = epoch_of(make(images, labels, *settings, epochs=1))
    assert ours.dtype == np.float32 and order.dtype == np.int32 and ours.shape == images.shape
    assert sorted(order) == list(range(COUNT)) and list(order) != list(range(COUNT))
    np.testing.assert_array_equal(ours, images[order].astype(np.float32) / 255)
    assert make(images, labels, *settings).cardinality() == tf.data.INFINITE_CARDINALITY


def test_the_canonical_pipeline_cuts_and_mirrors_as_the_input_does():
    """Otherwise it would do less work. Every window of an image must come equally often, mirrored and not mirrored."""
    images, labels = images_and_labels()
    padding = SIZE // 8
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    found, epochs = np.zeros((2 * padding + 1, 2 * padding + 1, 2), int), 10
    ours, order = epoch_of(compared.canonical(images, labels, 12, ("crop", "flip"), epochs=epochs))
    assert np.array_equal(np.bincount(order), np.full(COUNT, epochs))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIZE, SIZE), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    for image, label in zip(np.rint(ours * 255).astype(np.uint8), order, strict=True):
        for mirrored, candidate in enumerate((image, image[:, ::-1])):
            places = np.argwhere((windows[label] == candidate).all(axis=(2, 3, 4)))
            for top, left in places:
                found[top, left, mirrored] += 1
    assert found.sum() == epochs * COUNT  # each image is one window of its own original
    expected = epochs * COUNT / found.size
    assert ((found - expected) ** 2 / expected).sum() < 110  # chi-squared, 49 degrees of freedom: one in a million


def test_the_gather_shows_every_image_once_an_epoch():
    """It must gather in random order: slices in order would be several times as fast."""
    images, labels = images_and_labels()
    batches = compared.numpy_gather(images, labels, 25)
    taken = [next(batches) for _ in range(12)]  # 300 images: five epochs, which 25 does not divide
    order = np.concatenate([labels for _, labels in taken])
    assert all(np.array_equal(batch, images[index]) and batch.base is None for batch, index in taken)
    for epoch in order.reshape(5, COUNT):
        assert sorted(epoch) == list(range(COUNT)) and list(epoch) != list(range(COUNT))


@pytest.fixture(scope="module")
def stream(data_dir):
    config = DataConfig(data_dir=str(data_dir), input="stream", train_split="train[:120]", augment="crop,flip")
    return open_split(config, open_source(config), config.train_split, "train_split", log=lambda line: None)


def test_the_parts_of_a_stream_do_what_their_names_say(stream):
    """If nothing used the pixels, TensorFlow would leave out the decoding, and it would seem to take no time."""
    [(_, encoded)] = list(compared.part_of_stream("read", stream, 120, 0, (), epochs=1))
    pixels, labels = next(iter(compared.part_of_stream("read_decode", stream, 120, 0, (), epochs=1)))
    assert len(set(encoded.numpy())) == 120
    examples = [stream.source.parse(record) for record in encoded]
    assert labels.numpy().tolist() == [int(example["label"]) for example in examples]
    whole = [tf.io.decode_image(example["image"], channels=3).numpy() for example in examples]
    np.testing.assert_array_equal(pixels, [image[0, 0] for image in whole])


@pytest.mark.parametrize("augmentations", ["crop,flip", "random_resized_crop"])
def test_the_windows_of_a_stream_are_those_of_training(tmp_path, augmentations):
    """If it decoded smaller windows than training cuts, it would be no upper bound."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    rows, columns = np.mgrid[0:40, 0:52]
    image = np.stack([rows * 6, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    for index in range(6):
        (tmp_path / ("cat", "dog")[index % 2] / f"{index}.jpg").write_bytes(encoded(image, "JPEG", quality=100, subsampling=0))
    config = DataConfig(dataset=f"folder:{tmp_path}", input="stream", train_split="train", augment=augmentations, image_size=28)
    split = open_split(config, open_source(config), "train", "train_split", log=lambda line: None)
    pixels, _ = next(iter(compared.part_of_stream("decode_crop", split, 6, 5, config.augmentations, epochs=1)))
    first = next(iter(split.training_batches(5, 0, 6, config.augmentations)))["image"].numpy()
    tops, lefts = np.rint(pixels.numpy()[:, :2].T / [[6], [4]]).astype(int)  # read off the pixels
    assert len(set(tops)) > 1 and len(set(lefts)) > 1
    for cut, top, left in zip(first, tops, lefts, strict=True):
        corner = np.minimum(np.abs(cut[0, [0, -1]].astype(int)[:, :2] - [top * 6, left * 4]).max(axis=1), 255).min()
        assert corner <= 8  # resizing can move it to between the first two pixels


def test_the_canonical_pipeline_of_a_stream(stream):
    """It must return images of the network's size and all examples, like the stream that it is compared with."""
    images, labels = epoch_of(compared.canonical_stream(stream, 40, ("crop", "flip"), epochs=1))
    assert images.shape == (120, *stream.image_shape) and images.dtype == np.float32 and 0 <= images.min() < images.max() <= 1
    whole = stream.source.records(stream.split).map(lambda _, record: stream.source.parse(record)["label"])
    assert sorted(labels) == sorted(whole.as_numpy_iterator())


def test_rows_without_a_meaning_for_the_data_say_so(stream):
    """Users who name a row must learn why it is missing."""
    bench = bench_of()
    for name in OF_A_STREAM:
        with pytest.raises(RowFailed, match="--input=stream"):
            CLASSES[name](bench, name)
    large = ResidentSplit(np.broadcast_to(np.uint8(0), (10_000, 224, 224, 3)), np.zeros(10_000, np.int32))
    bench.run.train_split = large
    with pytest.raises(RowFailed, match="10,000 float images of 224 x 224"):
        CLASSES["tutorial"](bench, "tutorial")
    bench.run.train_split = stream
    for name in ("numpy_gather", "tutorial"):
        with pytest.raises(RowFailed, match="not in memory"):
            CLASSES[name](bench, name)
    with pytest.raises(RowFailed, match="not all images are JPEGs"):  # they are PNGs
        CLASSES["decode_crop"](bench, "decode_crop")


def test_a_round_starts_with_batches_that_are_not_counted():
    """Batches that were in the buffer before the clock started would count as infinitely fast."""
    bench = bench_of()
    ticks = iter(range(10_000))
    bench.clock = lambda: 0.04 * next(ticks)
    drawn = []
    row = CLASSES["input"](bench, "input")
    row._call = lambda count: drawn.extend([None] * count)
    speed = row.measure(1000)
    assert speed == pytest.approx(16 / 0.04)
    assert len(drawn) == compared.DRAINED_BATCHES + math.ceil(compared.INPUT_SECONDS / 0.04)
    bench.clock = lambda: 1e-3 * next(ticks)  # when calls are short, each draws more batches
    row.measure(1000)
    assert row._batches_per_call == compared.MOST_PER_CALL


@pytest.mark.parametrize(("loads", "intervals"), [([0.0], 1), ([2.0, 1.0, 0.3, 0.1, 2.0], 4), ([1.0] * 200, 100)])
def test_a_row_waits_for_the_buffers_of_those_before(loads, intervals):
    """`loads` is how many cores are busy in each interval. The first idle interval ends the wait, or five seconds do."""
    now, used, left = [0.0], [0.0], iter(loads)

    def sleep(seconds):
        now[0] += seconds
        used[0] += next(left) * seconds

    rest(lambda: now[0], lambda: used[0], sleep)
    assert now[0] == pytest.approx(intervals * REST_INTERVAL, abs=REST_INTERVAL + 1e-9 if intervals == 100 else 1e-9)


def test_the_measured_wait_is_that_for_the_data():
    """If the clock were read in another order, no wait would be measured although there is nothing else to do."""

    def slow(number):
        tf.py_function(lambda: time.sleep(0.05), [], [])
        return {"image": number}

    iterator = iter(timed(tf.data.Dataset.range(3).map(slow)))
    for number in range(3):
        batch = next(iterator)
        assert batch["image"] == number and 0.05 <= batch["waited"] < 1 and batch["waited"].dtype == tf.float64


def test_a_batch_that_is_ready_was_not_waited_for():
    """What the loop does between two batches is no waiting."""
    iterator = iter(timed(tf.data.Dataset.range(5).map(lambda number: {"image": number}).prefetch(5)))
    for _ in range(5):
        time.sleep(0.1)
        assert next(iterator)["waited"] < 0.05


@pytest.mark.slow
def test_a_stream_and_what_it_is_made_of(tmp_path, data_dir):
    """Through main.py: rows that do not apply are left out with a line; the rest is measured, drawn and gets a verdict."""
    workdir = tmp_path / "run"
    rows = ",".join(name for name in (*INPUTS, "step", "loop", "loop_constant"))
    done = run_benchmark(
        "--input=stream", "--augment=none", "--virtual_devices=2", f"--benchmark_rows={rows}", f"--workdir={workdir}",
        f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "benchmark.json").read_text())
    parts = [name for name in OF_A_STREAM if name != "decode_crop"]
    assert [row["name"] for row in result["rows"]] == ["input", *parts, "canonical", "step", "loop", "loop_constant"]
    assert [note.split()[0] for note in result["notes"]] == ["decode_crop", "numpy_gather", "tutorial"]
    ratios = {"input/canonical", "read_decode/read", "read_decode_augment/read_decode", "loop/loop_constant"}
    assert ratios <= result["ratios"].keys()
    assert result["traces"] == 1  # one compiled loop for both kinds of data, also on several replicas
    assert result["first_epoch"]["complete"] and result["first_epoch"]["images"] == 208  # 200, in whole batches of 16
    assert result["warm_up_seconds"].keys() == {row["name"] for row in result["rows"]}
    for share in (*result["data_wait_share_by_round"], result["data_wait_share_of_a_constant_batch"]):
        assert 0 < share < 1
    assert tf.io.decode_png((workdir / "benchmark.png").read_bytes()).shape[2] in (3, 4)
    assert "left out" in done.stdout and "data_wait_share" in done.stdout and "the first pass over the files" in done.stdout


def test_input_alone_is_no_verdict_and_needs_no_length():
    """Rows that train nothing have no steps from which to choose the length of a round."""
    assert benchmark_report.choose_length([], 20) == (20, benchmark_report.MOST_ROUNDS)
