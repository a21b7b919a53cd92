"""The process that uses a SavedModel as anybody would: with TensorFlow, without a module of this project.

`export_check` starts it as `python -P export_child.py SAVED_MODEL ASKED.npz ANSWERED.npz`. ASKED holds batches of images,
batch_0, ..., and the bytes of image files, file_0, ...; ANSWERED gets the arrays 0/<name of an output>, ..., one number a
batch and the last one for all files together.
"""

import sys

import numpy as np
import tensorflow as tf


def main(saved_model, asked, answered):
    """Answers one file of questions."""
    signatures = tf.saved_model.load(saved_model).signatures
    with np.load(asked) as arrays:
        batches = [arrays[name] for name in sorted(arrays) if name.startswith("batch_")]
        files = [arrays[name].tobytes() for name in sorted(arrays) if name.startswith("file_")]
    answers = [signatures["serving_default"](images=tf.constant(images)) for images in batches]
    answers.append(signatures["encoded"](encoded=tf.constant(files)))
    for answer in answers:
        names = [[name.decode("utf-8", "surrogateescape") for name in row] for row in answer["top_classes"].numpy()]
        answer["top_classes"] = np.array(names)
    np.savez(answered, **{f"{index}/{name}": array for index, answer in enumerate(answers) for name, array in answer.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
