"""TensorFlow's errors that a user can do something about, each as the one line that says what."""

import contextlib
import dataclasses
import re
import sys
import time

import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.images.loading import name_bad_example
from input_pipeline.sources import open_source

_KERNEL_MISSING = re.compile(r"No OpKernel was registered to support Op '(\w+)'|Could not find device for node: .+? = (\w+)\[")
# A connection that breaks inside a reduction, and what the other reductions of the process are then ended with.
_OF_LOST_WORKERS = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.CancelledError, tf.errors.AbortedError,
                    tf.errors.InternalError, tf.errors.UnknownError)
# Of the decoding of images and the parsing of records, in a stream; without the names of nodes around it.
_BAD_EXAMPLE = re.compile(r"assertion failed: \[an image\].*|jpeg::Uncompress.*|Invalid (?:PNG|GIF|JPEG|WebP) .*"
                          r"|Feature: \w+ \(data type.*|Could not parse example.*|Unknown image file format.*|Key: \w+\..*"
                          r"|Failed to decode WebP.*|.*WebP Animation.*|Input size should match.*|Number of channels.*"
                          r"|assertion failed: \[label out of range:\].*")
# Of Python that TensorFlow has called, from the class's name on.
_UNUSABLE = re.compile(rf"{UnusableError.__name__}: (.*)")
LOOKING_SECONDS = 60  # for the example that a stream failed on
_NODE = re.compile(r"\{\{node ([^}]+)\}\}")


@contextlib.contextmanager
def explained(config, workers=None):
    """Inside, TensorFlow's errors of memory, missing kernels, damaged files and lost workers become ExpectedErrors.

    Args:
      config: ExperimentConfig, whose values the errors name.
      workers: Workers that train together; None: this machine is alone.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        remedy = "the device's memory is not enough; give a smaller batch, more devices, or a larger --accumulate_steps"
        raise SettingError("global_batch_size", config.optimization.global_batch_size, remedy) from None
    except tf.errors.OpError as error:
        if unusable := _UNUSABLE.search(error.message):
            raise UnusableError(unusable[1]) from None
        if missing := _KERNEL_MISSING.search(error.message):
            node = _NODE.search(error.message)
            where = f" ({node[1]})" if node else ""
            remedy = f"the network's {missing[1] or missing[2]}{where} cannot compute in it on this device; give another"
            raise SettingError("precision", config.network.precision, remedy) from None
        if isinstance(error, tf.errors.InvalidArgumentError) and (bad := _BAD_EXAMPLE.search(error.message)):
            if workers is None or workers.is_alone:  # others that wait would take this one for lost
                _name_bad_example(config)
            remedy = f"an example of the stream cannot be used ({bad[0][:150]}); --max_bad_examples=N skips and lists such ones"
            raise UnusableError(f"--dataset={config.data.dataset}: {remedy}") from None
        if isinstance(error, (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError)):
            if isinstance(error, tf.errors.DataLossError) and (workers is None or workers.is_alone):
                _name_bad_example(config, lambda source, split, seconds: source.skip_damaged(split, seconds))
            reason = error.message.strip().splitlines()[0]
            remedy = "a file is damaged, gone or not ours to read ({}); prepare it again"
            raise UnusableError(f"--dataset={config.data.dataset}: {remedy.format(reason)}") from None
        alone = workers is None or workers.is_alone
        if isinstance(error, tf.errors.InvalidArgumentError) and "Iterator" in error.message and alone:
            _name_bad_example(config)  # a message of a decoder that is not listed above
        if workers and (isinstance(error, _OF_LOST_WORKERS) or "Collective ops is aborted" in error.message):
            workers.explain(error)
        raise


def _name_bad_example(config, look_for=name_bad_example):
    """Raises UnusableError, naming the file, where a minute is enough to find the example that a stream failed on.

    `look_for(source, split, seconds)` raises it; by default it decodes.
    """
    print("looking for the example that cannot be used, for a minute at most", file=sys.stderr)
    source = open_source(dataclasses.replace(config.data, max_bad_examples=0))
    splits = [config.data.train_split, config.data.validation_split, config.data.test_split]
    if config.general.mode == "evaluate":
        splits = [config.modes.split or config.data.test_split]
    deadline = time.monotonic() + LOOKING_SECONDS
    for split in filter(None, splits):
        look_for(source, split, deadline - time.monotonic())
