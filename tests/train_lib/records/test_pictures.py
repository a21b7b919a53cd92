"""Pictures of a run are compared with NumPy. Drawing them changes nothing but their folder."""

import base64
import errno
import io
import json
import random
import types

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from drivers import ZERO_ONE, make_config, random_split

import alexnet
from input_pipeline.common.batches import ONE_REPLICA
from input_pipeline.config import DataConfig
from input_pipeline.sources import open_source
from input_pipeline.splits.stream import StreamingSplit
from train_lib import config as config_lib
from train_lib import state
from train_lib.augment import augment
from train_lib.checkpoints.store import CheckpointStore
from train_lib.metrics import KEPT, Mistakes
from train_lib.records import charts, pictures
from train_lib.records.pictures import Pictures, first_kernels, kernel_grid, next_images, tile
from train_lib.records.workdir import Workdir, open_workdir
from train_lib.setup import Run, open_run
from train_lib.steps import scale_pixels
from train_lib.train import Trainer


def stand_in(**values):
    """A stand-in for a Run, with these attributes."""
    run = types.SimpleNamespace(**values)
    run.training_dataset = types.MethodType(Run.training_dataset, run)
    return run


# Kernels and batches.


def test_the_two_towers_lie_below_each_other_as_in_the_paper():
    """96 kernels of 11 x 11: 48 in three rows of 16 above, 48 below. Each is scaled by its own largest weight, and 0 is grey."""
    kernels = np.random.default_rng(0).normal(0, 0.01, (11, 11, 3, 96))
    kernels[0, 0, 0, 5], kernels[3, 3, :, 60] = 0.0, 0.0
    kernels[..., 7] = 0.0
    grid = kernel_grid(kernels, towers=2)
    cell, gap, between = 4 * 11, 4, 12
    tower = 3 * (cell + gap) - gap
    assert grid.shape == (2 * tower + between, 16 * (cell + gap) - gap, 3) and grid.dtype == np.uint8
    assert (grid[tower : tower + between] == 255).all()  # the space between the towers
    for index in range(96):
        which, place = divmod(index, 48)
        top = which * (tower + between) + place // 16 * (cell + gap)
        left = place % 16 * (cell + gap)
        shown = grid[top : top + cell : 4, left : left + cell : 4].astype(float)
        kernel = kernels[..., index]
        expected = 127.5 + 127.5 * kernel / (np.abs(kernel).max() or 1.0)
        assert np.abs(shown - expected).max() <= 0.5 + 1e-9, index
    assert (kernel_grid(np.full((5, 5, 3, 2), np.nan)) == 128).mean() > 0.8  # the kernels of a run that diverged


def test_every_image_stands_in_its_place_on_a_sheet():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 3), np.uint8)
    sheet = tile(images, columns=3, cell=6, gap=1)
    assert sheet.shape == (2 * 5 - 1, 3 * 7 - 1, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        assert (sheet[row * 5 : row * 5 + 4, column * 7 : column * 7 + 6] == index).all()
    assert (sheet[5:, 14:] == 255).all() and (sheet[4] == 255).all()


@pytest.mark.parametrize(("model", "size", "shape"), [
    ("alexnet", 224, (11, 11, 3, 96)), ("alexnet_mini_sequential", 32, (5, 5, 3, 24))])
def test_the_first_convolution_is_found(model, size, shape):
    network = alexnet.build(model, num_classes=4, image_shape=(size, size, 3), options="dense_units=8")
    kernels = first_kernels(network)
    assert kernels.shape == shape
    np.testing.assert_array_equal(kernels, network.get_layer("conv1").get_weights()[0])


def test_a_network_without_such_kernels_has_no_picture():
    inputs = keras.Input((4, 4, 3))
    assert first_kernels(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))) is None


@pytest.mark.parametrize(("augment_names", "size", "step", "shown"), [
    ("none", 64, 2, 32), ("crop,flip", 50, 3, 10), ("crop,flip,pca_color,cutout,mixup", 48, 5, 24)])
def test_the_batch_is_the_one_that_the_step_sees(augment_names, size, step, shown):
    """Compares the share that is drawn with the whole batch as the compiled step computes it."""
    config = make_config(augment=augment_names, global_batch_size=size, pixels="standardized", seed=3)
    split, chosen = random_split(), config.data.augmentations
    pixels = state.pixel_scaling("standardized", split, chosen)
    model = types.SimpleNamespace(inputs=[types.SimpleNamespace(dtype="float32")])
    run = stand_in(config=config, train_split=split, state=types.SimpleNamespace(pixels=pixels, step=step, model=model))
    images = next_images(run)
    batch = next(iter(split.training_batches(3, step, size, chosen, ONE_REPLICA)))
    scaled = scale_pixels(batch["image"], pixels, "float32")
    seen = augment(config, pixels, scaled, batch["label"], tf.constant(step, tf.int64), 0)[0].numpy()[:shown]
    assert images.shape == (shown, 32, 32, 3)
    np.testing.assert_allclose(images, np.clip(seen / pixels.scale + pixels.offset, 0, 255), atol=0.51)
    if augment_names == "none":
        np.testing.assert_array_equal(images, batch["image"][:shown])


def test_the_batch_of_a_stream_needs_no_full_buffer(data_dir, monkeypatch):
    """Filling it takes as long as the start of training, and 900 MB for ImageNet."""
    source = open_source(DataConfig(data_dir=str(data_dir)))
    split = StreamingSplit(source, "train[:300]", 300, 32, 4)
    asked, shuffled = [], type(source).shuffled_records
    def records(source, split, seed, epoch, buffer_size, **options):
        asked.append(buffer_size)
        return shuffled(source, split, seed, epoch, buffer_size, **options)

    monkeypatch.setattr(type(source), "shuffled_records", records)
    model = types.SimpleNamespace(inputs=[types.SimpleNamespace(dtype="float32")])
    run = stand_in(config=make_config(global_batch_size=64), train_split=split,
                   state=types.SimpleNamespace(pixels=ZERO_ONE, step=0, model=model))
    assert next_images(run).shape == (32, 32, 32, 3) and set(asked) == {32}


# Mistakes.


def test_the_most_confident_mistakes_by_hand():
    """Batches with padding and with logits that are not finite, compared with one sort of all examples."""
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, (96, 7)).astype(np.float32)
    labels, weights = generator.integers(0, 7, 96), (np.arange(96) < 90).astype(np.float32)
    logits[11, 2], logits[12, 3], logits[95] = np.nan, np.inf, 50 * (np.arange(7) == (labels[95] + 1) % 7)
    images = np.arange(96, dtype=np.uint8)[:, None, None, None] * np.ones((96, 2, 2, 3), np.uint8)
    found, fetched = Mistakes(), []

    def fetch(first):
        fetched.append(first)
        return images[first : first + 32]

    for first in (0, 32, 64):
        part = slice(first, first + 32)
        found.add(logits[part], labels[part], weights[part], lambda first=first: fetch(first))
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        probabilities = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    wrong = [i for i in range(90) if i not in (11, 12) and logits[i].argmax() != labels[i]]
    expected = sorted(wrong, key=lambda i: -probabilities[i].max())[:KEPT]
    assert [int(mistake.image[0, 0, 0]) for mistake in found.worst] == expected
    for mistake, row in zip(found.worst, expected, strict=True):
        assert mistake.label == labels[row]
        np.testing.assert_array_equal(mistake.classes, np.argsort(-wide[row])[:5])
        np.testing.assert_allclose(mistake.probabilities, np.sort(probabilities[row])[::-1][:5], rtol=1e-12)
    found.add(logits[:8], logits[:8].argmax(axis=1), weights[:8], lambda: fetch("all of it is right"))
    found.add(logits[:8] / 1000, (logits[:8].argmax(axis=1) + 1) % 7, weights[:8], lambda: fetch("none of it is confident"))
    assert fetched == [0, 32, 64]


def entry(name="cat", width=8):
    image = np.random.default_rng(0).integers(0, 256, (width, width, 3), np.uint8)
    predictions = [{"class": other, "probability": share} for other, share in (("dog", 0.75), (name, 0.25))]
    return {"true_class": name, "predictions": predictions, "image": base64.b64encode(tf.io.encode_png(image).numpy()).decode()}


@pytest.mark.parametrize("name", ["$\\frac{$", "a_very_long_name_of_a_class_that_would_not_fit", "猫", "<b>&"])
def test_class_names_are_not_read_as_formulas(name, recwarn):
    """Matplotlib reads text between dollar signs as mathematics, and fails if it is not."""
    confusion = np.array([[3, 1], [0, 2]])
    for figure in (charts.confusion_matrix([name, "dog"], confusion, name), charts.mistakes([entry(name)] * 3, name)):
        shown = matplotlib.image.imread(io.BytesIO(charts.to_png(figure)))
        assert shown.std() > 0.05
    assert not recwarn.list


def test_a_confusion_matrix_shows_its_rows_in_per_cent():
    confusion = np.array([[1, 9, 0], [7, 0, 0], [0, 0, 0]])
    figure = charts.confusion_matrix(["a", "b", "c"], confusion)
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, [[10, 90, 0], [100, 0, 0], [0, 0, 0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["10", "90", "100"]


# A run.

VALUES = {
    "model": "alexnet_mini", "model_options": "width=0.1,dense_units=32", "train_split": "train[:300]",
    "validation_split": "train[300:350]", "test_split": "test[:70]", "global_batch_size": 24, "steps_per_loop": 4,
    "eval_every_epochs": 0.5, "log_every_steps": 3, "epochs": 2, "augment": "crop,flip,pca_color,cutout,mixup",
}


def train(folder, data_dir, last_step, lines=None):
    """Trains up to `last_step`, from the newest checkpoint of the folder on."""
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder), "max_steps": last_step})
    store = CheckpointStore(folder / "checkpoints", 2)
    run = open_run(config, open_workdir(config), store.newest(), store, log=lambda line: None)
    trainer = Trainer(run)
    if lines is not None:
        next(hook for hook in trainer.hooks if isinstance(hook, Pictures))._log = lines.append
    assert trainer.train() == 0
    return trainer


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data_dir):
    """A run of 20 steps that was interrupted at 9. A picture of a later, lost step and a damaged picture lie in its folder."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    train(folder, data_dir, 9)
    (folder / "pictures" / "kernels-00000013.png").write_bytes(b"of a part of the run that was lost")
    (folder / "pictures" / "kernels-00000008.png").touch()  # as after a loss of power
    train(folder, data_dir, 20)
    return folder


def images_in_tensorboard(folder):
    """[(tag, step, the PNG file's bytes)]."""
    found = []
    for path in (folder / "tensorboard" / "pictures").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [(value.tag, event.step, tf.make_ndarray(value.tensor)[2]) for value in event.summary.value]
    return found


def test_a_run_leaves_its_pictures_once_however_often_it_was_killed(resumed):
    names = sorted(path.name for path in (resumed / "pictures").glob("*.png"))
    best = int((resumed / "checkpoints" / "best").read_text().strip().removeprefix("step-"))
    evaluated = [7, 9, 13, 19, 20]  # 9 and 20 are ends
    matrices = {int(name[-12:-4]) for name in names if name.startswith("confusion_matrix")}
    assert best in matrices and matrices <= {*evaluated} and len(matrices) <= 2
    expected = ["batch-00000000.png", *(f"kernels-{step:08d}.png" for step in evaluated)]
    assert [name for name in names if name.startswith(("batch", "kernels"))] == expected
    shown = images_in_tensorboard(resumed)
    assert sorted(f"{tag}-{step:08d}.png" for tag, step, _ in shown) == names
    for tag, step, png in shown:
        file = (resumed / "pictures" / f"{tag}-{step:08d}.png").read_bytes()
        np.testing.assert_array_equal(tf.io.decode_png(png), tf.io.decode_png(file, channels=3))


def test_the_evaluation_at_the_end_is_written_to_files(resumed):
    evaluation, noted = (json.loads((resumed / "pictures" / name).read_text()) for name in ("evaluation.json", "mistakes.json"))
    records = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    test_record = next(record for record in records if record["kind"] == "test")
    for name in ("step", "examples", "accuracy", "loss", "top_5_accuracy"):
        assert evaluation[name] == test_record[name]
    assert evaluation["split"] == "test[:70]" and np.sum(evaluation["confusion_matrix"]) == 70
    assert noted["step"] == evaluation["step"] and len(noted["mistakes"]) == KEPT
    confidence = [mistake["predictions"][0]["probability"] for mistake in noted["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    assert all(mistake["predictions"][0]["class"] != mistake["true_class"] for mistake in noted["mistakes"])


def test_a_full_disk_costs_the_pictures_and_nothing_else(resumed, tmp_path, data_dir, monkeypatch):
    """The records equal those of the run that drew all pictures, byte for byte, so drawing has no effect on them."""
    write_file = Workdir.write_file

    def refuse(self, name, content):
        if name.startswith("pictures/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_file(self, name, content)

    monkeypatch.setattr(Workdir, "write_file", refuse)
    lines = []
    train(tmp_path / "run", data_dir, 20, lines)
    assert not list((tmp_path / "run" / "pictures").glob("*.png"))
    assert len(lines) == 6  # the batch, four evaluations, the test
    assert all("no picture at step" in line and "No space left" in line and "\n" not in line for line in lines)
    records = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path / "run", resumed)]
    extra = set(records[1]) - set(records[0])  # the first part of the other run ended at step 9, with an evaluation
    assert len(records[0]) > 10 and set(records[0]) <= set(records[1]) and all('"step": 9,' in line for line in extra)


def pictures_of(folder, **about):
    """Pictures of a stand-in for a run."""
    values = {"config": make_config(), "train_split": random_split(), "source": types.SimpleNamespace(class_names=("a", "b"))}
    network = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 5)])
    values["state"] = types.SimpleNamespace(step=0, model=network, pixels=ZERO_ONE)
    lines = []
    return Pictures(stand_in(workdir=Workdir(folder), **(values | about)), lines.append), lines


def test_drawing_leaves_random_states_alone(tmp_path):
    def states():
        return random.getstate(), str(np.random.get_state()), tf.random.get_global_generator().state.numpy().tolist()

    drawn, _ = pictures_of(tmp_path)
    tf.random.set_seed(1)
    before = states()
    drawn.draw_batch()
    drawn.draw_evaluation(None, True)
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    after, first = states(), float(tf.random.uniform([]))
    tf.random.set_seed(1)
    assert after == before and first == float(tf.random.uniform([]))


def test_a_new_run_removes_its_own_pictures_alone(tmp_path):
    """A folder of that name may have existed before the run."""
    (tmp_path / "pictures").mkdir()
    for name in ("holiday.png", "IMG-20261125.png", "kernels-00000099.png", "evaluation.json"):
        (tmp_path / "pictures" / name).write_bytes(b"x")
    drawn, _ = pictures_of(tmp_path)
    drawn.draw_batch()
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"holiday.png", "IMG-20261125.png", "batch-00000000.png"}


def test_tensorflow_refusing_an_event_file_costs_a_line(tmp_path, monkeypatch):
    drawn, lines = pictures_of(tmp_path)

    def refuse(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "events: No space left on device\nmore")

    monkeypatch.setattr(pictures.tf.summary, "image", refuse)
    drawn.draw_batch()
    assert len(lines) == 1 and "No space left on device more); going on" in lines[0] and "\n" not in lines[0]


def test_only_the_chief_draws(tmp_path):
    drawn = Pictures(types.SimpleNamespace(workdir=Workdir(tmp_path, is_ours=False), state=types.SimpleNamespace(step=0)))
    drawn.draw_batch()
    drawn.draw_evaluation(None, True)
    drawn.draw_test(None, 1)
    assert not list(tmp_path.iterdir())
