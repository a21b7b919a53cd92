"""What the benchmark measures on Keras's own loop: `model.fit` here, and in a process with TensorFlow's defaults.

This module is also that process, which `DefaultFitRow` starts.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import ExpectedError, one_line_of
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split
from train_lib import config as config_lib
from train_lib import steps
from train_lib.cli import environment
from train_lib.distribution.strategy import create_strategy
from train_lib.modes.benchmark.inputs import tutorial
from train_lib.modes.benchmark.rows import Row, RowFailed, wait_for_devices
from train_lib.state import create_state

CHILD = "train_lib.modes.benchmark.fit"
# {--optimizer: makes the Keras optimizer to compare with, from an OptimizerConfig and the arguments that all of them take}.
KERAS_OPTIMIZERS = {
    "sgd": lambda config, common: keras.optimizers.SGD(momentum=config.momentum, nesterov=config.nesterov, **common),
    "adam": lambda config, common: keras.optimizers.Adam(**common),
    "adamw": lambda config, common: keras.optimizers.AdamW(**common | {"weight_decay": config.weight_decay}),  # it refuses None
}


def make_fit_model(config, strategy, num_classes, image_shape, pixels=None, **compile_options):
    """The network of an ExperimentConfig with fresh weights, compiled for `model.fit`.

    `pixels` is the PixelScaling that the model applies first, to uint8 images as in the loop; None if they are scaled already.
    Raises RowFailed if Keras has no optimizer to compare --optimizer with.
    """
    model = network = create_state(config, strategy, num_classes, image_shape, pixels).model
    with strategy.scope():
        if pixels is not None:
            images = keras.Input(tuple(image_shape), dtype="uint8")
            scale = keras.layers.Lambda(lambda images: steps.scale_pixels(images, pixels, network.inputs[0].dtype))
            model = keras.Model(images, network(scale(images)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if smoothing := config.optimization.label_smoothing:

            def loss(labels, logits):
                return steps.cross_entropy(tf.cast(labels, tf.int32), logits, smoothing)  # Keras passes labels as floats

        model.compile(make_fit_optimizer(config.optimization), loss, metrics=["accuracy"], **compile_options)
    return model


def make_fit_optimizer(config):
    """The Keras optimizer for an OptimizerConfig. Keras decays weights by a formula of its own, which costs the same."""
    if config.optimizer not in KERAS_OPTIMIZERS:
        raise RowFailed(f"there is no entry for --optimizer={config.optimizer} in {CHILD}.KERAS_OPTIMIZERS")
    return KERAS_OPTIMIZERS[config.optimizer](config, {
        "learning_rate": config.learning_rate, "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_global_norm or None, "use_ema": bool(config.ema_decay),
        "ema_momentum": config.ema_decay or 0.99})


class FitRow(Row):
    """`model.fit` on the loop's own batches: one call per round, with as many steps per compiled call as the loop has."""

    def __init__(self, bench, name="model_fit"):
        super().__init__(bench)
        run, config = bench.run, bench.config
        if config.optimization.accumulate_steps > 1:
            bench.note("model_fit computes each batch at once: Keras has nothing like --accumulate_steps")
        if config.optimization.lookahead_steps or config.optimization.bias_rate != 1:
            bench.note("model_fit trains without --lookahead_steps and --bias_rate, which Keras does not have")
        steps_per_execution = config.device.steps_per_loop
        if run.strategy.num_replicas_in_sync > 1 and steps_per_execution > 1:
            # Otherwise Keras 3.15 fails with "You must feed a value for placeholder" (seen on two logical devices).
            bench.note("model_fit calls each step from Python: Keras has no steps_per_execution for several replicas")
            steps_per_execution = 1
        batches = run.training_dataset(split=run.train_split.on_host)
        self._dataset = batches.map(lambda batch: (batch["image"], batch["label"]))
        self._model = make_fit_model(
            config, run.strategy, len(run.source.class_names), run.train_split.image_shape, run.state.pixels,
            steps_per_execution=steps_per_execution, jit_compile=config.device.xla == "on")

    def _take(self, num_steps):
        start = self._bench.clock()
        try:
            self._model.fit(self._dataset, epochs=1, steps_per_epoch=num_steps, verbose=0, shuffle=False)
        except (ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
            if self._bench.run.strategy.num_replicas_in_sync == 1:
                raise
            # We cannot fix this: Keras 3 promises little for model.fit under tf.distribute.
            raise RowFailed(f"model.fit fails under this strategy: {one_line_of(error)}") from None
        wait_for_devices()
        return num_steps, self._bench.clock() - start


class DefaultFitRow(Row):
    """`model.fit` as tutorials write it, in a child process that runs one round per message.

    Messages and answers are JSON, one line each. The first message is the configuration, whose answer is {}. All others are
    {"steps": n}, whose answer is {"seconds", "seconds_after_last_step"}. Any answer may be {"error": text} instead.

    `stalls` has for each round the seconds that fit took to return after the last step, while its iterator ended.
    """

    def __init__(self, bench, name="model_fit_default"):
        super().__init__(bench)
        self.stalls = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, `close` closes it
        users, root = environment.of_the_user(), str(pathlib.Path(__file__).resolve().parents[3])
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=users | {
                "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore",
                "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # it shares the GPU with this process
                "PYTHONPATH": os.pathsep.join(filter(None, [root, users.get("PYTHONPATH")]))})

    def warm_up(self):
        self._ask(config_lib.to_values(self._bench.config))  # the child loads the data and compiles the model
        self.measure(2)
        speed = self.measure(4)
        self.stalls.clear()
        return speed

    def _take(self, num_steps):
        answer = self._ask({"steps": num_steps})
        self.stalls.append(answer["seconds_after_last_step"])
        return num_steps, answer["seconds"]

    def _ask(self, message):
        try:
            print(json.dumps(message), file=self._child.stdin, flush=True)
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):  # the pipe closes when the child ends for any reason
            code = self._child.wait()
            self._errors.seek(0)
            printed = [line.strip() for line in self._errors if line.strip()] or ["it printed no error"]
            raise RowFailed(f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code} ({printed[-1]})'}")
        answer = json.loads(line)
        if "error" in answer:
            raise RowFailed(answer["error"])
        return answer

    def close(self):
        """Kills the child, which may be waiting for threads of tf.data."""
        self._child.kill()
        self._child.wait()
        self._errors.close()


def prepare_fit(config):
    """Loads the data and compiles the network; returns a function that answers {"steps": n} with the times of `model.fit`."""
    strategy, source = create_strategy(config), open_source(config.data)
    split = open_split(config.data, source, config.data.train_split, "train_split", log=lambda line: None)
    if not hasattr(split, "images"):
        raise RowFailed("the images do not fit in memory, where tutorials have them")
    batch_size = config.optimization.global_batch_size
    model = make_fit_model(config, strategy, len(source.class_names), split.image_shape)

    @functools.lru_cache(maxsize=1)
    def dataset(num_steps):
        index = np.arange(num_steps * batch_size) % split.num_examples  # repeats the images of a small split
        return tutorial(split.images[index], split.labels[index], batch_size, epochs=1)

    def fit(message):
        batches, ends = dataset(message["steps"]), []
        after_last_step = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.monotonic()))
        start = time.monotonic()
        model.fit(batches, epochs=1, callbacks=[after_last_step])
        end = time.monotonic()
        return {"seconds": end - start, "seconds_after_last_step": end - ends[0]}

    return fit


def serve(messages, answers):
    """The child process: answers each line until there are no more. An error becomes an answer too."""
    fit = None
    for line in messages:
        try:
            message = json.loads(line)
            if fit:
                answer = fit(message)
            else:
                fit, answer = prepare_fit(config_lib.from_values(message)), {}
        except (ExpectedError, RowFailed, ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
            answer = {"error": one_line_of(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # Only answers go through the pipe. What Keras and TensorFlow print is thrown away.
    with os.fdopen(os.dup(1), "w") as pipe, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        serve(sys.stdin, pipe)
