"""The mode `export`: writes a checkpoint as a SavedModel that contains its preprocessing, and as a .keras file."""

import contextlib
import errno
import json
import shutil

import keras
import tensorflow as tf

from input_pipeline.common.errors import UnusableError, one_line_of
from input_pipeline.images import decoding
from train_lib.cli.failures import explained
from train_lib.modes.classifier import open_classifier
from train_lib.modes.export.check import check


class Served(tf.Module):
    """The two functions of the SavedModel. Both return the same answer for the same images.

    Answer:
      {"probabilities": float32 [n, classes], "top_classes": string [n, 5], "top_probabilities": float32 [n, 5]}, with the best
      class first; fewer than 5 if there are fewer classes.

    Args:
      classifier: Classifier; its weights are saved with this object.
    """

    def __init__(self, classifier):
        super().__init__()
        self._weights = [variable.value for variable in classifier.state.model.variables]
        self._classifier = classifier

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def classify_images(self, images):
        """uint8 [n, height, width, 3] of any size -> the answer."""
        return self._answer(self._classifier.view(images))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "encoded")])
    def classify_encoded(self, encoded):
        """The bytes of image files, string [n], of any sizes and formats -> the answer."""
        shape = tf.TensorSpec([*self._classifier.view.size, 3], tf.uint8)
        return self._answer(tf.map_fn(self._view_of, encoded, fn_output_signature=shape))

    def _view_of(self, encoded):
        return self._classifier.view(decoding.decode_unchecked(encoded))

    def _answer(self, views):
        logits = self._classifier.eval_step({"image": views})
        probabilities = tf.cast(tf.nn.softmax(logits), tf.float32)
        top = tf.math.top_k(logits, self._classifier.top).indices
        names = tf.constant([name.encode("utf-8", "surrogateescape") for name in self._classifier.class_names])
        best = tf.gather(probabilities, top, batch_dims=1)
        return {"probabilities": probabilities, "top_classes": tf.gather(names, top), "top_probabilities": best}


def export(config, workdir):
    """The mode `export`: writes --checkpoint of a Workdir into --export_dir, checks it, and returns 0.

    Raises:
      UnusableError: the folder cannot be written, or the export and the checkpoint compute different probabilities.
    """
    # Every machine has a CPU. The export and the checkpoint must be compared with the same arithmetic.
    tf.config.set_visible_devices([], "GPU")
    target = workdir.export_target(config)
    with explained(config):
        classifier = open_classifier(config, workdir, tf.distribute.get_strategy())
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


def _write(classifier, config, folder):
    served = Served(classifier)
    signatures = {"serving_default": served.classify_images, "encoded": served.classify_encoded}
    try:
        tf.saved_model.save(served, folder / "saved_model", signatures)
    except tf.errors.OpError as error:  # TensorFlow's error if the disk is full
        raise OSError(errno.EIO, one_line_of(error)) from None
    keras_model(classifier).save(folder / "model.keras")
    description = {
        "checkpoint": classifier.checkpoint.folder.name,
        "step": classifier.checkpoint.step,
        "model": config.network.model,
        "model_options": config.network.model_options,
        "precision": config.network.precision,
        "image_shape": list(classifier.state.model.inputs[0].shape[1:]),
        "test_crops": config.modes.test_crops,
        "class_names": list(classifier.class_names),
    }
    (folder / "export.json").write_text(json.dumps(description, indent=1) + "\n")


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


@contextlib.contextmanager
def _folder_by_rename(target):
    """Inside, an empty folder exists. It becomes `target` at the end, or is removed after an error."""
    temporary = target.with_name(f".{target.name}.exporting")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by an export that was killed
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)  # fails if somebody has made a file or a folder with content there since the start
    except OSError as error:
        reason = error.strerror or error
        raise UnusableError(f"--export_dir={target}: cannot be written ({reason}); make room, or give another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
