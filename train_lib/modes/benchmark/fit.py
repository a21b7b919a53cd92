"""What the benchmark measures on Keras's own loop: `model.fit` here, and in a process with TensorFlow's defaults."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import tensorflow as tf

from train_lib import config as config_lib
from train_lib import steps
from train_lib.cli import environment
from train_lib.modes.benchmark.rows import RowFailed, wait_for_devices
from train_lib.state import create_state

CHILD = "train_lib.modes.benchmark.child"


class ScalePixels(keras.layers.Layer):
    """`steps.scale_pixels` as a layer, so that `model.fit` gets the uint8 images that the loop gets."""

    def __init__(self, pixels, dtype):
        super().__init__(dtype=dtype, name="scale_pixels")
        self._pixels = pixels

    def call(self, images):
        """uint8 images to the network's input."""
        return steps.scale_pixels(images, self._pixels, self.compute_dtype)


def make_fit_model(config, strategy, num_classes, image_shape, pixels=None, **compile_options):
    """The network of a configuration with fresh weights, compiled for `model.fit`.

    Args:
      config: ExperimentConfig.
      strategy: what it is built and trained under.
      num_classes, image_shape: of the data.
      pixels: PixelScaling, to be done inside the model; None: the images are scaled already.
      compile_options: for `model.compile`.
    """
    network = create_state(config, strategy, num_classes, image_shape, pixels).model
    with strategy.scope():
        model = network
        if pixels is not None:
            images = keras.Input(tuple(image_shape), dtype="uint8")
            model = keras.Model(images, network(ScalePixels(pixels, network.inputs[0].dtype)(images)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if smoothing := config.optimization.label_smoothing:

            def loss(labels, logits):
                return steps.cross_entropy(tf.cast(labels, tf.int32), logits, smoothing)  # Keras makes floats of them

        model.compile(make_fit_optimizer(config.optimization), loss, metrics=["accuracy"], **compile_options)
    return model


def make_fit_optimizer(config):
    """The Keras optimizer for an OptimizerConfig. Keras decays weights by a formula of its own, at the same cost."""
    common = {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_global_norm or None,
        "use_ema": bool(config.ema_decay),
        "ema_momentum": config.ema_decay or 0.99,
    }
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=config.momentum, nesterov=config.nesterov, **common)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(**common)
    return keras.optimizers.AdamW(**common | {"weight_decay": config.weight_decay})


class FitRow:
    """`model.fit` on the loop's own batches: one call a round, as many steps in a compiled call as the loop has."""

    def __init__(self, bench):
        self._bench, run, config = bench, bench.run, bench.config
        if config.optimization.accumulate_steps > 1:
            bench.note("model_fit works through each batch at once: Keras has nothing like --accumulate_steps")
        steps_per_execution = config.device.steps_per_loop
        if run.strategy.num_replicas_in_sync > 1 and steps_per_execution > 1:
            # Keras 3.15 ends with "You must feed a value for placeholder" otherwise (tried on two logical devices).
            bench.note("model_fit calls each step from Python: Keras has no steps_per_execution for several replicas")
            steps_per_execution = 1
        self._dataset = run.train_split.on_host.training_batches(
            config.general.seed, 0, config.optimization.global_batch_size, config.data.augmentations,
        ).map(lambda batch: (batch["image"], batch["label"]))
        self._model = make_fit_model(
            config, run.strategy, len(run.source.class_names), run.train_split.image_shape, run.state.pixels,
            steps_per_execution=steps_per_execution, jit_compile=config.device.xla == "on")

    def warm_up(self):
        """Traces and compiles; images/s of the second call."""
        self.measure(self._bench.config.device.steps_per_loop)
        return self.measure(self._bench.config.device.steps_per_loop)

    def measure(self, num_steps):
        """Images/s of one call of fit; `num_steps` is a multiple of steps_per_loop."""
        start = self._bench.clock()
        try:
            self._model.fit(self._dataset, epochs=1, steps_per_epoch=num_steps, verbose=0, shuffle=False)
        except (ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
            if self._bench.run.strategy.num_replicas_in_sync == 1:
                raise
            # Not ours to mend: Keras 3 promises little for model.fit under tf.distribute.
            raise RowFailed(f"model.fit fails under this strategy, {reason_of(error)}") from None
        wait_for_devices()
        return self._bench.images_per_second(num_steps, self._bench.clock() - start)

    def close(self):
        """Nothing to close."""


def reason_of(error):
    """An exception's type and first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


class DefaultFitRow:
    """`model.fit` as tutorials write it, in a child process that is asked for one round after the other.

    The two talk in JSON, a line each way: first the configuration, then {"steps": n}; the answers are {} and
    {"seconds", "seconds_after_last_step"}, or {"error"}.
    """

    def __init__(self, bench):
        self._bench = bench
        self.stalls = []  # seconds that fit took to return after the last step of each round
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, `close` closes it
        own = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
        own["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # it shares the GPU with this process
        root = str(pathlib.Path(__file__).resolve().parents[3])
        users = environment.of_the_user()
        path = os.pathsep.join(filter(None, [root, users.get("PYTHONPATH")]))
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=users | own | {"PYTHONPATH": path})

    def warm_up(self):
        """Lets the child load the data and compile; images/s of its second call."""
        self._ask(config_lib.to_values(self._bench.config))
        self.measure(2)
        speed = self.measure(4)
        self.stalls.clear()
        return speed

    def measure(self, num_steps):
        """Images/s of one call of fit."""
        answer = self._ask({"steps": num_steps})
        self.stalls.append(answer["seconds_after_last_step"])
        return self._bench.images_per_second(num_steps, answer["seconds"])

    def _ask(self, message):
        try:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):  # the pipe closes when the child ends, however it ends
            code = self._child.wait()
            how = f"by signal {-code}" if code < 0 else f"with code {code} ({self._last_words()})"
            raise RowFailed(f"its process ended {how}")
        answer = json.loads(line)
        if "error" in answer:
            raise RowFailed(answer["error"])
        return answer

    def _last_words(self):
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def close(self):
        """Ends the child, which may be waiting for threads of tf.data."""
        self._child.kill()
        self._child.wait()
        self._errors.close()
