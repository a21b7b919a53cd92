"""Reads the tensors of a checkpoint that may come from elsewhere: numbers alone, and no more than the file can hold."""

import os

import numpy as np
import tensorflow as tf

from input_pipeline.errors import UnusableError


def read_tensors(path, prefix=""):
    """{name: NumPy array} of the tensors of a TensorFlow checkpoint `path`, in one data file, whose names begin with `prefix`.

    Raises:
      UnusableError: its index cannot be read, or claims what is no number or more bytes than there are.
    """
    try:
        reader = tf.train.load_checkpoint(str(path))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        _judge(path, shapes, dtypes)
        return {name: reader.get_tensor(name) for name in shapes if name.startswith(prefix)}
    except (tf.errors.OpError, ValueError, RuntimeError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnusableError(f"{path}: is no checkpoint of TensorFlow or damaged ({reason}); give another") from None


def _judge(path, shapes, dtypes):
    # TensorFlow allocates what the index claims before it looks at the data.
    claimed = 0
    for name, shape in shapes.items():
        dtype = dtypes[name]
        if not (dtype.is_floating or dtype.is_integer or dtype.is_bool) or any(size < 0 for size in shape):
            raise ValueError(f"{name} is {dtype.name} {shape}, not an array of numbers")
        claimed += int(np.prod(shape, dtype=object)) * dtype.size
    there = os.path.getsize(f"{path}.data-00000-of-00001")
    if claimed > there:
        raise ValueError(f"its index claims {claimed} bytes, the data file has {there}")
