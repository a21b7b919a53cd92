"""Turns TensorFlow's errors into the one line that tells a user what to do, where a user can do something."""

import contextlib
import dataclasses
import re
import sys
import time

import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.images.loading import name_bad_example
from input_pipeline.sources import open_source

LOOKING_SECONDS = 60  # for the example that a stream failed on
_KERNEL_MISSING = re.compile(r"No OpKernel was registered to support Op '(\w+)'|Could not find device for node: .+? = (\w+)\[")
_NODE = re.compile(r"\{\{node ([^}]+)\}\}")
# If a connection breaks inside a reduction, TensorFlow ends it and the other reductions of the process with these.
_LOST_WORKER = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.CancelledError, tf.errors.AbortedError,
                tf.errors.InternalError, tf.errors.UnknownError)
# Messages of decoding an image or parsing a record inside a stream, without the node names around them.
_BAD_EXAMPLE = re.compile(r"assertion failed: \[an image\].*|jpeg::Uncompress.*|Invalid (?:PNG|GIF|JPEG|WebP) .*"
                          r"|Feature: \w+ \(data type.*|Could not parse example.*|Unknown image file format.*|Key: \w+\..*"
                          r"|Failed to decode WebP.*|.*WebP Animation.*|Input size should match.*|Number of channels.*"
                          r"|assertion failed: \[label out of range:\].*")
_UNUSABLE = re.compile(rf"{UnusableError.__name__}: (.*)")  # an error of our own, from Python code that TensorFlow called


@contextlib.contextmanager
def explained(config, workers=None):
    """Context manager that turns TensorFlow's errors of memory, kernels, damaged files and lost workers into ExpectedErrors."""
    is_alone = workers is None or workers.is_alone  # otherwise others wait, and would take this worker for lost during a search
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        remedy = "the device's memory is not enough; give a smaller batch, more devices, or a larger --accumulate_steps"
        raise SettingError("global_batch_size", config.optimization.global_batch_size, remedy) from None
    except UnicodeDecodeError:  # TensorFlow puts the bytes of a record that it cannot parse into its message
        if config.general.mode not in ("train", "evaluate", "benchmark"):
            raise
        if is_alone:
            _name_bad_example(config, name_bad_example)
        remedy = "a record of the stream is no tf.train.Example; --max_bad_examples=N skips and lists such ones"
        raise UnusableError(f"--dataset={config.data.dataset}: {remedy}") from None
    except tf.errors.OpError as error:
        if unusable := _UNUSABLE.search(error.message):
            raise UnusableError(unusable[1]) from None
        if missing := _KERNEL_MISSING.search(error.message):
            node = _NODE.search(error.message)
            layer = f"{missing[1] or missing[2]}{f' ({node[1]})' if node else ''}"
            remedy = f"the network's {layer} cannot compute in it on this device; give another"
            raise SettingError("precision", config.network.precision, remedy) from None
        is_invalid = isinstance(error, tf.errors.InvalidArgumentError)
        bad = _BAD_EXAMPLE.search(error.message) if is_invalid else None
        if is_alone and (bad or (is_invalid and "Iterator" in error.message)):  # the latter: a decoder's message not listed above
            _name_bad_example(config, name_bad_example)
        if is_alone and isinstance(error, tf.errors.DataLossError):
            _name_bad_example(config, lambda source, split, seconds: source.skip_damaged(split, seconds))
        remedy = None
        if bad:
            remedy = f"an example of the stream cannot be used ({bad[0][:150]}); --max_bad_examples=N skips and lists such ones"
        elif isinstance(error, (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError)):
            reason = error.message.strip().splitlines()[0]
            remedy = f"a file is damaged, missing or not readable for you ({reason}); prepare it again"
        if remedy:
            raise UnusableError(f"--dataset={config.data.dataset}: {remedy}") from None
        if workers and (isinstance(error, _LOST_WORKER) or "Collective ops is aborted" in error.message):
            workers.explain(error)
        raise


def _name_bad_example(config, look_for):
    """Looks for the example that a stream failed on. If `look_for` finds it, it raises UnusableError, which names the file."""
    print("looking for the example that cannot be used, for a minute at most", file=sys.stderr)
    source = open_source(dataclasses.replace(config.data, max_bad_examples=0))
    splits = [config.data.train_split, config.data.validation_split, config.data.test_split]
    if config.general.mode == "evaluate":
        splits = [config.modes.split or config.data.test_split]
    deadline = time.monotonic() + LOOKING_SECONDS
    for split in filter(None, splits):
        look_for(source, split, deadline - time.monotonic())
