"""The process of the row `model_fit_default`: `model.fit` as tutorials write it, under TensorFlow's defaults.

`benchmark_fit.DefaultFitRow` starts it and describes what the two say to each other.
"""

import json
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import ExpectedError
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split
from train_lib import config as config_lib
from train_lib.distribution.strategy import create_strategy
from train_lib.modes.benchmark.fit import make_fit_model, reason_of

SHUFFLED = 10_000


class LastStep(keras.callbacks.Callback):
    """Remembers when the steps of a fit were done; what follows is the end of its iterator."""

    def on_epoch_end(self, epoch, logs=None):
        """Called by Keras after the last step."""
        self.time = time.monotonic()


class Fit:
    """A compiled model and its data.

    Args:
      config: ExperimentConfig.

    Raises:
      ExpectedError: the data cannot be used.
      ValueError: the images are not in memory, where the tutorial has them.
    """

    def __init__(self, config):
        strategy = create_strategy(config)
        source = open_source(config.data)
        self._split = open_split(config.data, source, config.data.train_split, "train_split", log=lambda line: None)
        if not hasattr(self._split, "images"):
            raise ValueError("the images do not fit in memory, where tutorials have them")
        self._batch_size = config.optimization.global_batch_size
        self._model = make_fit_model(config, strategy, len(source.class_names), self._split.image_shape)
        self._datasets = {}

    def run(self, num_steps):
        """One call of fit over so many batches; seconds in all, and those after the last step."""
        dataset, last_step = self._dataset(num_steps), LastStep()
        start = time.monotonic()
        self._model.fit(dataset, epochs=1, callbacks=[last_step])
        end = time.monotonic()
        return {"seconds": end - start, "seconds_after_last_step": end - last_step.time}

    def _dataset(self, num_steps):
        """The tutorial's pipeline over so many batches of images, those of the split again where it is smaller."""
        if num_steps not in self._datasets:
            index = np.arange(num_steps * self._batch_size) % self._split.num_examples
            slices = tf.data.Dataset.from_tensor_slices((self._split.images[index], self._split.labels[index]))
            scaled = slices.map(lambda image, label: (tf.cast(image, tf.float32) / 255, label))
            self._datasets = {num_steps: scaled.shuffle(SHUFFLED).batch(self._batch_size, drop_remainder=True)}
        return self._datasets[num_steps]


def serve(questions, answers):
    """Answers line after line until there is no more; an error is an answer too."""
    fit = None
    for question in questions:
        try:
            message = json.loads(question)
            if fit is None:
                fit, answer = Fit(config_lib.from_values(message)), {}
            else:
                answer = fit.run(message["steps"])
        except (ExpectedError, ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
            answer = {"error": reason_of(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    # The pipe is for answers alone; what Keras and TensorFlow print goes nowhere.
    with os.fdopen(os.dup(1), "w") as pipe, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        serve(sys.stdin, pipe)
