"""The mode `export`: writes a checkpoint as a SavedModel that contains its preprocessing, and as a .keras file.

Both are compared with the checkpoint before anybody relies on them.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import UnusableError, one_line_of
from input_pipeline.images import decoding
from train_lib.cli.failures import explained
from train_lib.evaluate import make_eval_step
from train_lib.modes.classifier import Classifier

CHILD = pathlib.Path(__file__).with_name("child.py")
DECODED_AT_A_TIME = 16  # files of a request, on as many cores as the serving machine has
# For probabilities that one machine computes twice. The saved graph may be fused, and so rounded, in another way.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 0.02, "float16": 0.005}


def export(config, workdir):
    """Writes --checkpoint into --export_dir and returns 0.

    Raises UnusableError if the folder cannot be written, or if the export and the checkpoint compute different probabilities.
    """
    # Every machine has a CPU. The export and the checkpoint must be compared with the same arithmetic.
    tf.config.set_visible_devices([], "GPU")
    target = workdir.export_target(config)
    with explained(config):
        classifier = Classifier(config, workdir, tf.distribute.get_strategy())
        with _folder_by_rename(target) as folder:
            _write(classifier, config, folder)
            difference = check(classifier, folder, config.network.precision)
    height, width, _ = classifier.state.model.inputs[0].shape[1:]
    print(
        f"exported {classifier.checkpoint.folder}; loaded in a new process, probabilities are within {difference:.1g} of its own",
        f"{target / 'saved_model'}",
        "    tf.saved_model.load(...).signatures: serving_default(images=uint8 [n, height, width, 3] of any size)",
        "    and encoded(encoded=the bytes of n image files) give probabilities, top_classes and top_probabilities",
        f"{target / 'model.keras'}",
        f"    import alexnet.layers; keras.models.load_model(...): pixels 0 to 255, [n, {height}, {width}, 3], to probabilities",
        f"{target / 'export.json'}",
        "    the names of the classes in the order of the probabilities",
        sep="\n")
    return 0


@contextlib.contextmanager
def _folder_by_rename(target):
    """Inside, an empty folder exists. It becomes `target` at the end, or is removed after an error.

    Yields a link to it, because TensorFlow cannot save a model below a name that is not UTF-8.
    """
    temporary = target.with_name(f".{target.name}.exporting")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by an export that was killed
        temporary.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as place:
            link = pathlib.Path(place) / target.name.encode(errors="replace").decode()
            link.symlink_to(temporary.absolute())
            yield link
        temporary.rename(target)  # fails if somebody has made a file or a folder with content there since the start
    except OSError as error:
        reason = error.strerror or error
        raise UnusableError(f"--export_dir={target}: cannot be written ({reason}); make room, or give another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(classifier, config, folder):
    served, network = Served(classifier), config.network
    signatures = {"serving_default": served.classify_images, "encoded": served.classify_encoded}
    try:
        tf.saved_model.save(served, folder / "saved_model", signatures)
    except tf.errors.OpError as error:  # TensorFlow's error if the disk is full
        raise OSError(errno.EIO, one_line_of(error)) from None
    keras_model(classifier).save(folder / "model.keras")
    description = {
        "checkpoint": classifier.checkpoint.folder.name, "step": classifier.checkpoint.step, "model": network.model,
        "model_options": network.model_options, "precision": network.precision,
        "image_shape": list(classifier.state.model.inputs[0].shape[1:]), "test_crops": config.modes.test_crops,
        "class_names": list(classifier.class_names),
    }
    (folder / "export.json").write_text(json.dumps(description, indent=1) + "\n")


class Served(tf.Module):
    """The two functions of the SavedModel. Both return the same answer for the same images.

    The answer is {"probabilities": float32 [n, classes], "top_classes": string [n, 5], "top_probabilities": float32 [n, 5]}, with
    the best class first; fewer than 5 if there are fewer classes. n may be 0.
    """

    def __init__(self, classifier):
        super().__init__()
        self._weights = [variable.value for variable in classifier.state.model.variables]  # saved with this object
        self._classifier = classifier

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def classify_images(self, images):
        """uint8 [n, height, width, 3] of any size -> the answer."""
        count = tf.shape(images)[0]
        # A convolution fails for an empty batch, so a black image takes its place, and the answer for it is cut off.
        views = tf.cond(count > 0, lambda: self._classifier.view(images), lambda: tf.expand_dims(self._blank(), 0))
        return {name: values[:count] for name, values in self._answer(views).items()}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "encoded")])
    def classify_encoded(self, encoded):
        """The bytes of image files, string [n], of any sizes and formats -> the answer.

        In the rows of files that cannot be decoded, probabilities are 0 and names are empty.
        """
        count = tf.size(encoded, tf.int64)
        views = tf.data.Dataset.from_tensor_slices(encoded).enumerate().map(self._view_of, DECODED_AT_A_TIME).ignore_errors()
        # A black image at the end, as row `count`, so that there is at least one. It is classified only if there is no other.
        views = views.concatenate(tf.data.Dataset.from_tensors((count, self._blank()))).batch(count + 1)
        rows, views = without_autotune(views).get_single_element()
        classified = tf.maximum(tf.size(rows) - 1, 1)
        places = tf.scatter_nd(rows[:classified, tf.newaxis], 1 + tf.range(classified), [count + 1])[:count]
        return {name: tf.gather(tf.concat([tf.zeros_like(values[:1]), values], axis=0), places)  # row 0 for those without a place
                for name, values in self._answer(views[:classified]).items()}

    def _view_of(self, row, encoded):
        return row, self._classifier.view(decoding.decode_unchecked(encoded))

    def _blank(self):
        return tf.zeros([*self._classifier.size, 3], tf.uint8)

    def _answer(self, views):
        logits = self._classifier.eval_step({"image": views})
        probabilities = tf.cast(tf.nn.softmax(logits), tf.float32)
        top = tf.math.top_k(logits, self._classifier.top).indices
        return {"probabilities": probabilities, "top_classes": tf.gather(_names(self._classifier), top),
                "top_probabilities": tf.gather(probabilities, top, batch_dims=1)}


def _names(classifier):
    return np.array([name.encode("utf-8", "surrogateescape") for name in classifier.class_names])


def keras_model(classifier):
    """A Keras model from pixels in [0, 255], [n, height, width, 3] of the network's size, to probabilities [n, classes]."""
    network, pixels = classifier.state.model, classifier.state.pixels
    dtype = network.inputs[0].dtype
    return keras.Sequential([
        keras.Input(network.inputs[0].shape[1:], dtype=dtype, name="pixels"),
        keras.layers.Rescaling(pixels.scale.tolist(), (-pixels.offset * pixels.scale).tolist(), dtype=dtype, name="scale_pixels"),
        network,
        keras.layers.Activation("softmax", dtype=dtype, name="probabilities"),
    ], name=f"{network.name}_classifier")


def check(classifier, folder, precision):
    """Compares `folder`/saved_model, in a process that has only TensorFlow, and `folder`/model.keras with the checkpoint.

    Returns the largest difference of a probability. Raises UnusableError if it is larger than TOLERANCE allows, or if the
    SavedModel cannot be loaded.
    """
    height, width = classifier.state.model.inputs[0].shape[1:3]
    generator = np.random.default_rng(0)
    batches = []  # of soft noise, two images each, the first of them of the network's size
    for size in ((height, width), (2 * height + 3, 3 * width + 1), (height // 2 + 1, width)):
        noise = tf.image.resize(generator.integers(0, 256, (2, 4, 4, 3)), size, "bicubic")
        batches.append(np.clip(noise, 0, 255).astype(np.uint8))
    views = [classifier.view(images) for images in batches]
    views.append(np.stack([view[0] for view in views]))  # the contents of the files
    cases = {"class_names": _names(classifier)}
    for index, images in enumerate(batches):
        cases |= {f"batch_{index}": images, f"file_{index}": np.frombuffer(tf.io.encode_png(images[0]).numpy(), np.uint8)}
    for index, view in enumerate(views):
        cases[f"expected_{index}"] = tf.nn.softmax(classifier.eval_step({"image": view})).numpy()
    expected = tf.nn.softmax(make_eval_step(classifier.strategy, classifier.state)({"image": batches[0]}))
    # In a graph, because some layers of Keras trace again in each eager call, and TensorFlow warns about it.
    found = tf.function(keras.models.load_model(folder / "model.keras"))(batches[0])
    difference = np.maximum(np.abs(expected - found).max(), _difference_elsewhere(folder / "saved_model", cases))
    if not difference <= TOLERANCE[precision]:  # NaN is an error too
        how = f"computes probabilities up to {difference:.2g} off those of {classifier.checkpoint.folder}"
        raise UnusableError(f"--mode=export: the exported model {how}; nothing is kept")
    return float(difference)


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
