"""Shared by all tests: the embedded data set prepared once, and main.py as users run it."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
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
    from test_train_lib_distribution import run

    return run(run_main, tmp_path_factory.mktemp("one") / "run", data_dir, "--precision=float64")


def run_main(*arguments, timeout=300, cwd=None, env=None):
    """Runs main.py in a process of its own; returns the CompletedProcess with text output."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | (env or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment)


@pytest.fixture
def main():
    """`run_main`, as a fixture."""
    return run_main
