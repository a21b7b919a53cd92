"""The process that uses a SavedModel as anybody would: with TensorFlow, but without a module of this project.

`saved_model.py` starts it as `python -P child.py SAVED_MODEL CASES.npz`. It prints the largest difference from what is expected.
"""

import sys

import numpy as np
import tensorflow as tf


def largest_difference(saved_model, cases):
    """The largest difference of a probability, of the probability of a named class, or between best probabilities in order.

    The cases are {"class_names": bytes [classes], "batch_0": images, ..., "file_0": the bytes of an image file as uint8, ...,
    "expected_0": probabilities for a batch, ..., the last of them for all files together}.
    """
    signatures = tf.saved_model.load(saved_model).signatures
    batches, files = ([cases[name] for name in sorted(cases) if name.startswith(kind)] for kind in ("batch_", "file_"))
    answers = [signatures["serving_default"](images=tf.constant(images)) for images in batches]
    answers.append(signatures["encoded"](encoded=tf.constant([file.tobytes() for file in files])))
    differences = []
    for index, answer in enumerate(answers):
        expected, top, probabilities = cases[f"expected_{index}"], answer["top_classes"].numpy(), answer["top_probabilities"]
        differences += [np.abs(expected - answer["probabilities"]).max(),
                        np.abs(-np.sort(-expected, axis=1)[:, : top.shape[1]] - probabilities).max()]
        for row, names, ps in zip(expected, top, probabilities.numpy(), strict=True):
            differences += [np.abs(row[cases["class_names"] == name] - p).min() for name, p in zip(names, ps, strict=True)]
    return float(np.max(differences))  # NaN if one of them is


if __name__ == "__main__":
    with np.load(sys.argv[2]) as arrays:
        print(largest_difference(sys.argv[1], dict(arrays)))
