"""The process that uses a SavedModel as anybody would: with TensorFlow, but without a module of this project.

`check.py` starts it as `python -P child.py SAVED_MODEL INPUTS.npz OUTPUTS.npz`. INPUTS contains batches of images, batch_0, ...,
and the bytes of image files, file_0, .... OUTPUTS gets arrays called 0/<name of an output>, ...: a number for each batch, and the
last one for all files together. Class names are bytes.
"""

import sys

import numpy as np
import tensorflow as tf


def main(saved_model, inputs, outputs):
    """Computes the outputs for one file of inputs."""
    signatures = tf.saved_model.load(saved_model).signatures
    with np.load(inputs) as arrays:
        batches = [arrays[name] for name in sorted(arrays) if name.startswith("batch_")]
        files = [arrays[name].tobytes() for name in sorted(arrays) if name.startswith("file_")]
    answers = [signatures["serving_default"](images=tf.constant(images)) for images in batches]
    answers.append(signatures["encoded"](encoded=tf.constant(files)))
    answers = [{name: value.numpy() for name, value in answer.items()} for answer in answers]
    np.savez(outputs, **{f"{index}/{name}": array.astype("S") if array.dtype == object else array  # npz would pickle objects
                         for index, answer in enumerate(answers) for name, array in answer.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
