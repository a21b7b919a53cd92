"""Tests that need their own process: an empty `sys.modules`, other devices, other settings of TensorFlow.

Each `in_process_*` function below is the body of the test that names it.
"""

import os
import pathlib
import subprocess
import sys

import pytest
from helpers import ROOT


def run_alone(function, **environment):
    """Runs one function of this module in a fresh interpreter."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    code = f"import tests.alexnet.{pathlib.Path(__file__).stem} as tests; tests.{function.__name__}()"
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]


def in_process_names_are_light():
    import alexnet.names

    heavy = {"tensorflow", "keras", "numpy"} & sys.modules.keys()
    assert not heavy, heavy
    assert alexnet.names.ALL


def in_process_towers_have_gradients():
    import numpy as np
    import tensorflow as tf

    import alexnet

    model = alexnet.build("alexnet", 3, (64, 64, 3), options="dense_units=4")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(np.ones((1, 64, 64, 3), "float32"))))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.any(gradient) for gradient in gradients[:10])


def gradients_by_replicas(strategy, build, images, labels, *, jit_compile):
    """Gradients of the mean loss over the global batch, summed over the replicas."""
    import keras
    import tensorflow as tf

    from alexnet.layers import dropout_masks

    with strategy.scope():
        model = build()

    @tf.function(jit_compile=jit_compile)
    def compute(images, labels, step, first_example):
        with tf.GradientTape() as tape, dropout_masks(5, step, first_example):
            logits = model(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_sum(losses) / global_batch_size
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    @tf.function
    def step(images, labels):
        def replica(images, labels):
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            function = compute if jit_compile else compute.python_function
            return function(images, labels, tf.constant(3, tf.int64), index * replica_batch_size)

        gradients = strategy.run(replica, args=(images, labels))
        return [strategy.reduce(tf.distribute.ReduceOp.SUM, gradient, axis=None) for gradient in gradients]

    global_batch_size, replicas = len(images), strategy.num_replicas_in_sync
    replica_batch_size = global_batch_size // replicas
    split = [
        strategy.experimental_distribute_values_from_function(
            lambda context, array=array: tf.constant(
                array[context.replica_id_in_sync_group * replica_batch_size :][:replica_batch_size]
            )
        )
        for array in (images, labels)
    ]
    return [gradient.numpy() for gradient in step(*split)]


def assert_replicas_do_not_matter(build, *, jit_compile):
    """Compares two replicas, each with half of the batch, with one device that has the whole batch, in float64."""
    import numpy as np
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 16, 16, 3)), np.arange(6)
    one = gradients_by_replicas(tf.distribute.get_strategy(), build, images, labels, jit_compile=False)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    two = gradients_by_replicas(mirrored, build, images, labels, jit_compile=jit_compile)
    assert len(one) == len(two) and all(np.any(gradient) for gradient in one)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


def build_tower():
    import alexnet

    return alexnet.build(
        "alexnet_tower", 10, (16, 16, 3), options="dense_units=16,lrn=true", precision="float64"
    )


def build_batch_normalized():
    """A small network with the parts of EfficientNet: batch normalization and two kinds of dropout."""
    import keras

    from alexnet import applications

    keras.config.set_dtype_policy("float64")
    images = keras.Input((16, 16, 3), dtype="float64")
    x = keras.layers.Conv2D(8, 3, kernel_initializer=keras.initializers.HeUniform(seed=1))(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), seed=1)(keras.activations.relu(x))
    x = keras.layers.Dropout(0.5, seed=2)(keras.layers.Flatten()(x))
    logits = keras.layers.Dense(10, kernel_initializer=keras.initializers.HeUniform(seed=2))(x)
    return applications.adapt(keras.Model(images, logits))


def in_process_tower_on_two_replicas():
    assert_replicas_do_not_matter(build_tower, jit_compile=False)


def in_process_compiled_tower_on_two_replicas():
    assert_replicas_do_not_matter(build_tower, jit_compile=True)


def in_process_batch_norm_on_two_replicas():
    assert_replicas_do_not_matter(build_batch_normalized, jit_compile=False)


def test_names_import_without_tensorflow():
    run_alone(in_process_names_are_light)


def test_towers_have_gradients_without_onednn():
    run_alone(in_process_towers_have_gradients, TF_ENABLE_ONEDNN_OPTS="0")


@pytest.mark.parametrize(
    "function",
    [
        in_process_tower_on_two_replicas,
        pytest.param(in_process_compiled_tower_on_two_replicas, marks=pytest.mark.slow),
        in_process_batch_norm_on_two_replicas,
    ],
)
def test_two_replicas_compute_what_one_does(function):
    run_alone(function)
