"""Ten-crop evaluation against NumPy, through a small network and through a run."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from drivers import make_config, mirrored, random_split

from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import SettingError
from train_lib.evaluate import SplitEvaluator, evaluate, make_eval_step, mean_prediction, ten_views
from train_lib.records.workdir import open_workdir
from train_lib.state import PixelScaling, TrainState
from train_lib.train import train

PIXELS = PixelScaling(np.array([100.0, 120.0, 140.0]), np.array([1 / 50, 1 / 60, 1 / 70]))


def by_hand(image, height, width):
    """The ten windows of one larger image."""
    down, right = image.shape[0] - height, image.shape[1] - width
    windows = [image[:height, :width], image[:height, right:], image[down:, :width], image[down:, right:]]
    windows.append(image[down // 2 : down // 2 + height, right // 2 : right // 2 + width])
    return np.stack(windows + [np.fliplr(window) for window in windows])


@pytest.mark.parametrize(("larger", "padding"), [((9, 10), None), ((8, 8), 1), ((36, 36), None), ((16, 16), 2)])
def test_the_windows_are_those_of_numpy(larger, padding):
    """A corner taken twice, or a window moved by the padding, would evaluate another image."""
    size = {9: (8, 8), 8: (8, 8), 36: (32, 32), 16: (16, 16)}[larger[0]]
    images = np.random.default_rng(0).integers(0, 256, (3, *larger, 3), np.uint8)
    views = np.stack(ten_views(tf.constant(images), *size), axis=1)
    padded = images if padding is None else np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    np.testing.assert_array_equal(views, [by_hand(image, *size) for image in padded])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_mean_is_of_probabilities(dtype):
    """A mean of logits is another prediction; a logarithm of a probability that vanished would make the loss infinite."""
    logits = np.random.default_rng(1).normal(0, 5, (10, 6, 4)).astype(dtype)
    logits[:, 0] = [300, 0, -300, 1]
    mean = mean_prediction(lambda view: view, list(tf.constant(logits)))
    assert mean.dtype == ("float64" if dtype == "float64" else "float32")
    exact = logits.astype(np.float64)
    probabilities = np.exp(exact - exact.max(axis=2, keepdims=True))
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(tf.nn.softmax(mean), probabilities.mean(axis=0), atol=1e-6)
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(mean[0], [0, -300, -600, -299], atol=1e-3)


def small_state():
    """A network of one convolution that looks at where things are."""
    glorot = keras.initializers.GlorotUniform  # with seeds of its own: the global one would change other tests
    images = keras.Input((32, 32, 3), dtype="float64")
    hidden = keras.layers.Conv2D(4, 5, 4, activation="relu", kernel_initializer=glorot(1), dtype="float64")(images)
    hidden = keras.layers.BatchNormalization(dtype="float64")(hidden)
    logits = keras.layers.Dense(10, kernel_initializer=glorot(2), dtype="float64")(keras.layers.Flatten(dtype="float64")(hidden))
    return TrainState(keras.Model(images, logits), None, PIXELS)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_split_is_evaluated_by_the_mean_of_ten_views(num_replicas):
    """Loss and accuracy against NumPy's mean over the ten windows of the padded images; the last batch is padded, too."""
    split = random_split(50)
    strategy = mirrored(num_replicas)
    with strategy.scope():
        state = small_state()
    evaluator = SplitEvaluator(strategy, make_eval_step(strategy, state, 10), split, 10, 32, test_crops=10)
    summary = evaluator.evaluate().summary()
    padded = np.pad(split.images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    views = np.stack([by_hand(image, 32, 32) for image in padded])
    logits = small_state().model.predict_on_batch((views.reshape(-1, 32, 32, 3) - PIXELS.offset) * PIXELS.scale)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).reshape(50, 10, 10).mean(axis=1)
    np.testing.assert_allclose(summary["loss"], -np.log(probabilities[np.arange(50), split.labels]).mean(), rtol=1e-9)
    assert summary["accuracy"] == np.mean(probabilities.argmax(axis=1) == split.labels)


@pytest.mark.parametrize("crops", [0, 3, 11])
def test_other_numbers_of_views_are_refused(crops):
    """A 5 that is taken for a 10 would be reported as what it is not."""
    with pytest.raises(SettingError, match="--test_crops=.*1, 2, 6 or 10"):
        make_config(test_crops=crops)


def test_a_stream_gives_the_larger_image(data_dir):
    """Views of the 7/8 that one view looks at would leave the rest of the image out."""
    from input_pipeline import sources
    from input_pipeline.config import DataConfig
    from input_pipeline.images import decoding as augment
    from input_pipeline.splits import stream as streaming

    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    for margin in (0, 4):  # with and without a crop in training
        split = streaming.StreamingSplit(source, "test[:10]", 10, 28, margin)
        batch = next(iter(split.evaluation_batches(8, Shard(1, 1, 2), test_crops=10)))
        assert batch["image"].shape == (4, 32, 32, 3)
        records = list(source.records("test[:10]"))[4:8]
        expected = np.stack([augment.decode(source.parse(record)["image"]) for _, record in records])
        np.testing.assert_array_equal(batch["image"], expected)
        last = list(split.evaluation_batches(8, test_crops=10).take(2))[1]
        assert last["weight"].numpy().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_run_evaluates_its_test_split_by_ten_views(tmp_path, data_dir, capsys):
    """The accuracy at the end of training and that of --mode=evaluate are one number; colours survive a resume."""
    values = {
        "workdir": str(tmp_path / "run"), "data_dir": str(data_dir), "train_split": "train[:64]", "test_split": "test[:50]",
        "validation_split": "train[64:96]", "global_batch_size": 16, "test_crops": 10, "model_options": "dense_units=16",
        "augment": "random_resized_crop,flip,pca_color,cutout,mixup",
    }
    for max_steps in (2, 4):
        config = make_config(**values, max_steps=max_steps)
        workdir = open_workdir(config)
        assert train(config, workdir) == 0
    evaluate(config, workdir)
    assert "mean of 10 views" in capsys.readouterr().out
    report, result = (json.loads((workdir.path / name).read_text()) for name in ("evaluation.json", "result.json"))
    assert report["test_crops"] == 10 and report["accuracy"] == result["test_accuracy"]
    tensors = [tf.train.load_checkpoint(str(path / "ckpt")) for path in (workdir.path / "checkpoints").glob("step-*")]
    axes = [checkpoint.get_tensor("pixels/color_axes") for checkpoint in tensors]
    assert len(axes) == 2 and np.linalg.norm(axes[0]) > 0
    np.testing.assert_array_equal(*axes)
