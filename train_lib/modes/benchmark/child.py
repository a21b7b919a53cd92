"""The process of the row `model_fit_default`: `model.fit` as tutorials write it, with TensorFlow's defaults.

`fit.DefaultFitRow` starts it. Its docstring describes the messages.
"""

import functools
import json
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import ExpectedError, one_line_of
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split
from train_lib import config as config_lib
from train_lib.distribution.strategy import create_strategy
from train_lib.modes.benchmark.fit import make_fit_model
from train_lib.modes.benchmark.pipelines import tutorial
from train_lib.modes.benchmark.rows import RowFailed


def prepare(config):
    """Loads the data of an ExperimentConfig and compiles its network.

    Returns:
      A function of the number of steps. It calls `model.fit` once and returns {"seconds", "seconds_after_last_step"}; the latter
      is the time that the end of the iterator takes.

    Raises:
      ExpectedError: the data cannot be used.
      RowFailed: the images are not in memory, where the tutorial has them.
    """
    strategy = create_strategy(config)
    source = open_source(config.data)
    split = open_split(config.data, source, config.data.train_split, "train_split", log=lambda line: None)
    if not hasattr(split, "images"):
        raise RowFailed("the images do not fit in memory, where tutorials have them")
    batch_size = config.optimization.global_batch_size
    model = make_fit_model(config, strategy, len(source.class_names), split.image_shape)

    @functools.lru_cache(maxsize=1)
    def dataset(num_steps):
        index = np.arange(num_steps * batch_size) % split.num_examples  # repeats the images of a small split
        return tutorial(split.images[index], split.labels[index], batch_size, epochs=1)

    def fit(num_steps):
        batches, ends = dataset(num_steps), []
        after_last_step = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.monotonic()))
        start = time.monotonic()
        model.fit(batches, epochs=1, callbacks=[after_last_step])
        end = time.monotonic()
        return {"seconds": end - start, "seconds_after_last_step": end - ends[0]}

    return fit


def serve(questions, answers):
    """Answers each line until there are no more. An error becomes an answer too."""
    fit = None
    for question in questions:
        try:
            message = json.loads(question)
            if fit is None:
                fit, answer = prepare(config_lib.from_values(message)), {}
            else:
                answer = fit(message["steps"])
        except (ExpectedError, RowFailed, ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
            answer = {"error": one_line_of(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Only answers go through the pipe. What Keras and TensorFlow print is thrown away.
    with os.fdopen(os.dup(1), "w") as pipe, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        serve(sys.stdin, pipe)
