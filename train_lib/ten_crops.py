"""The paper's test: the mean of the predictions for ten views of an image (Krizhevsky et al., section 4.1)."""

import math

import tensorflow as tf

VIEWS = 10
PADDED_SHARE = 8  # of the height: what the training crop pads by, too


def ten_views(images, height, width):
    """The windows at the four corners and in the middle, and their mirror images.

    Images that have the network's own size already are padded by an eighth of their height with zeros first, as for the random
    crop in training; larger ones, such as the streaming path gives, are cut as they are.

    Args:
      images: uint8 [b, at least height, at least width, 3].
      height: of the network's input.
      width: likewise.

    Returns:
      A list of ten uint8 [b, height, width, 3]: top left, top right, bottom left, bottom right, middle, then the mirror images.
    """
    if images.shape[1:3] == (height, width):
        padding = height // PADDED_SHARE
        images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    down, right = images.shape[1] - height, images.shape[2] - width
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    windows = [images[:, top : top + height, left : left + width] for top, left in corners]
    return windows + [window[:, :, ::-1] for window in windows]


def mean_prediction(logits_of, views):
    """The logarithm of the mean of the softmax predictions for several views.

    It serves as logits: its softmax is that mean, which the loss, the accuracy and the top-5 accuracy are then of.

    Args:
      logits_of: from views, [b, height, width, 3], to logits, float [b, classes].
      views: a list of tensors, each with the same examples.

    Returns:
      float [b, classes], never below float32.
    """

    def log_probabilities(view):
        logits = logits_of(view)
        return tf.nn.log_softmax(logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32))

    # One view after the other, to need no more memory than for one, in a loop, to trace the network twice and not ten times.
    first = log_probabilities(views[0])
    others = tf.map_fn(log_probabilities, tf.stack(views[1:]), parallel_iterations=1, fn_output_signature=first.dtype)
    return tf.reduce_logsumexp(tf.concat([first[tf.newaxis], others], axis=0), axis=0) - math.log(len(views))
