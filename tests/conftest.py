"""Fixtures that all tests share: the embedded data set prepared once, and runs that several tests look at."""

import os
import tempfile

import pytest
from helpers import run_main

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.path.join(os.devnull, "keras")}  # so no keras.json is read
# Decoded images go here, of main.py's processes too, not to the user's home; gone when this process ends.
_cache = tempfile.TemporaryDirectory(prefix="alexnet-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

import tensorflow as tf  # noqa: E402

# For the tests that train on several replicas; the others use the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder that holds the embedded data set."""
    from input_pipeline import sources
    from input_pipeline.config import DataConfig

    folder = tmp_path_factory.mktemp("data")
    sources.open_source(DataConfig(data_dir=str(folder)))
    return folder


@pytest.fixture(scope="session")
def one_replica(tmp_path_factory, data_dir):
    """Records and tensors of the run that every number of replicas and workers must repeat, on one device in float64."""
    from tests.train_lib.distribution.test_replicas import run

    return run(run_main, tmp_path_factory.mktemp("one") / "run", data_dir, "--precision=float64")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, data_dir):
    """A trained run of a small network on images of 28 x 28, read as a stream: (workdir, folder of its test split as PNG files).

    Its evaluation sees the middle of an image whose short side is 32; its weights are averages. The folder holds
    <class>/<number>.png, 32 x 32.
    """
    from drivers import run_mode
    from PIL import Image

    from input_pipeline import sources, splits
    from input_pipeline.config import DataConfig
    from input_pipeline.splits import resident
    from train_lib.train import train

    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "MEMORY_SHARE", 0.0)  # so that --input=auto takes a stream
        arguments = ("--model_options=width=0.25,dense_units=32,dense7_relu=true", "--image_size=28", "--train_split=train[:320]",
                     "--validation_split=train[320:370]", "--test_split=test[:150]", "--global_batch_size=64", "--epochs=2",
                     "--ema_decay=0.5")
        assert run_mode(train, f"--workdir={folder / 'run'}", f"--data_dir={data_dir}", *arguments) == 0
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    split = resident.load(source, "test[:150]", 150, (32, 32))
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = folder / "test" / source.class_names[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder / "run", folder / "test"


@pytest.fixture
def main():
    """`run_main`, as a fixture."""
    return run_main
