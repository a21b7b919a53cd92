"""TensorFlow's errors that a user can act on become one line that names the flag and the remedy."""

import keras
import pytest
import tensorflow as tf
from drivers import ZERO_ONE, make_config, mirrored

import alexnet
from input_pipeline.common.errors import SettingError, UnusableError
from train_lib import state
from train_lib.cli.failures import explained


class BareNormalization(keras.layers.Layer):
    """A layer whose kernel exists for few dtypes."""

    def call(self, images):
        return tf.nn.lrn(images)


def build(name, num_classes, image_shape, precision, **_):
    policy = alexnet.POLICIES[precision]
    images = keras.Input(image_shape, dtype=keras.dtype_policies.get(policy).variable_dtype)
    features = BareNormalization(dtype=policy, name="norm9")(images)
    return keras.Model(images, keras.layers.Dense(num_classes)(keras.layers.Flatten()(features)))


@pytest.mark.parametrize(("precision", "compiled", "words"), [
    ("float64", True, ["norm9", "float64"]), ("bfloat16", True, ["norm9", "LRN"]), ("bfloat16", False, ["LRN"])])
def test_a_precision_that_a_layer_cannot_compute_in(monkeypatch, precision, compiled, words):
    """The error must name the researcher's own layer instead of a page of TensorFlow's kernels."""
    monkeypatch.setattr(alexnet, "build", build)
    config = make_config(precision=precision)
    with pytest.raises(SettingError) as error, explained(config):
        model = state.create_state(config, mirrored(1), 10, (32, 32, 3), ZERO_ONE).model
        call = tf.function(model) if compiled else model
        call(tf.zeros((2, 32, 32, 3), model.inputs[0].dtype))
    line = str(error.value)
    assert line.startswith(f"--precision={precision}: ") and "\n" not in line and "\x1b" not in line
    assert all(word in line for word in words)


@pytest.mark.parametrize(("raised", "expected", "words"), [
    (tf.errors.ResourceExhaustedError(None, None, "OOM"), SettingError, ["--global_batch_size=32", "smaller batch"]),
    (tf.errors.DataLossError(None, None, "corrupted record at 12\nmore"), UnusableError, ["--dataset=shapes", "record at 12"]),
    (tf.errors.NotFoundError(None, None, "no such file; x.tfrecord"), UnusableError, ["--dataset=shapes", "x.tfrecord"]),
    (tf.errors.InternalError(None, None, "a defect"), tf.errors.InternalError, ["a defect"]),
])
def test_which_errors_are_explained(raised, expected, words):
    with pytest.raises(expected) as error, explained(make_config()):
        raise raised
    assert all(word in str(error.value) for word in words)


def test_xla_cannot_compile_a_sum_over_replicas():
    """TensorFlow's own error only mentions merge_call."""
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, keras.layers.BatchNormalization(synchronized=True, name="bn7")(images))
    state._check_xla(make_config(xla="on"), mirrored(1), model)
    state._check_xla(make_config(xla="auto"), mirrored(2), model)
    with pytest.raises(SettingError, match="--xla=on: bn7 .*give off"):
        state._check_xla(make_config(xla="on"), mirrored(2), model)
