"""Compares an export with the checkpoint, before anybody relies on it."""

import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib.evaluate import make_eval_step

CHILD = pathlib.Path(__file__).with_name("child.py")
# For probabilities that one machine computes twice. The saved graph may be fused, and so rounded, in another way.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 0.02, "float16": 0.005}


def check(classifier, folder, precision):
    """Compares `folder`/saved_model, in a process that has only TensorFlow, and `folder`/model.keras with the checkpoint.

    Args:
      classifier: Classifier with the checkpoint's weights.
      folder: Path that `export` has filled.
      precision: of the network.

    Returns:
      The largest difference of a probability.

    Raises:
      UnusableError: it is larger than TOLERANCE, or the SavedModel cannot be loaded.
    """
    batches = _sample_batches(*classifier.state.model.inputs[0].shape[1:3])
    views = [classifier.view(images) for images in batches]
    views.append(np.stack([view[0] for view in views]))  # the contents of the files
    cases = {"class_names": np.array([name.encode("utf-8", "surrogateescape") for name in classifier.class_names])}
    for index, images in enumerate(batches):
        cases |= {f"batch_{index}": images, f"file_{index}": np.frombuffer(tf.io.encode_png(images[0]).numpy(), np.uint8)}
    for index, view in enumerate(views):
        cases[f"expected_{index}"] = tf.nn.softmax(classifier.eval_step({"image": view})).numpy()
    difference = np.maximum(_difference_of_keras(classifier, folder / "model.keras", batches[0]),
                            _difference_elsewhere(folder / "saved_model", cases))
    if not difference <= TOLERANCE[precision]:  # NaN is an error too
        how = f"computes probabilities up to {difference:.2g} off those of {classifier.checkpoint.folder}"
        raise UnusableError(f"--mode=export: the exported model {how}; nothing is kept")
    return float(difference)


def _sample_batches(height, width):
    """Images of soft noise, uint8: a batch of two for each of several sizes, the first of which is (height, width)."""
    sizes = [(height, width), (2 * height + 3, 3 * width + 1), (height // 2 + 1, width)]
    generator = np.random.default_rng(0)
    noise = [tf.image.resize(generator.integers(0, 256, (2, 4, 4, 3)), size, "bicubic") for size in sizes]
    return [np.clip(images, 0, 255).astype(np.uint8) for images in noise]


def _difference_of_keras(classifier, path, images):
    expected = tf.nn.softmax(make_eval_step(classifier.strategy, classifier.state)({"image": images}))
    # In a graph, because some layers of Keras trace again in each eager call, and TensorFlow warns about it.
    return np.abs(expected - tf.function(keras.models.load_model(path))(images)).max()


def _difference_elsewhere(saved_model, cases):
    """`child.largest_difference`, computed on the CPU of a new process."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(path := os.path.join(folder, "cases.npz"), **cases)
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run([sys.executable, "-P", str(CHILD), str(saved_model), path],  # -P: no module of ours is on the path
                              capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UnusableError(f"--mode=export: a new process cannot use the exported model ({reason}); nothing is kept")
    return float(done.stdout.split()[-1])
