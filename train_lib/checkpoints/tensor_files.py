"""Reads the tensors of a TensorFlow checkpoint that may come from a stranger.

TensorFlow's own reader crashes the process if the index is malicious (tried: a negative size, a reference as dtype), and it
allocates what the index claims before it looks at the data. This reader accepts only plain numbers, and no more than the file
holds. The format is small: the index is a sorted table of blocks as in LevelDB (see table_format.md there). Each value is a
BundleEntryProto (tensor_bundle.proto in TensorFlow), which states where in the data file the bytes of a tensor are.
"""

import os
import struct

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import read_file

_MAGIC, _FOOTER_BYTES = 0xDB4775248B80FB57, 48


def read_tensors(path, prefix=""):
    """{name: NumPy array} of the tensors whose names start with `prefix`, from the checkpoint `path`, which has one data file.

    Raises UnusableError if it cannot be read, or its index names something that is not an array of numbers inside the data file.
    """
    data = f"{path}.data-00000-of-00001"
    try:
        entries = dict(_table(read_file(f"{path}.index")))
        if BundleHeaderProto.FromString(entries.pop(b"")).endianness != BundleHeaderProto.LITTLE:
            raise ValueError("is not little-endian")
        found = {name.decode(): _checked_entry(name, BundleEntryProto.FromString(entry)) for name, entry in entries.items()}
        claimed, there = sum(entry.size for entry in found.values()), os.path.getsize(data)
        if claimed > there:
            raise ValueError(f"its index claims {claimed} bytes, the data file has {there}")
        return {name: _read(data, entry) for name, entry in sorted(found.items()) if name.startswith(prefix)}
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, DecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnusableError(f"{path}: is not a TensorFlow checkpoint, or it is damaged ({reason}); copy it again") from None


def _checked_entry(name, entry):
    dtype = tf.as_dtype(entry.dtype)
    shape = [dimension.size for dimension in entry.shape.dim]
    plain = (dtype.is_floating or dtype.is_integer or dtype.is_bool) and dtype == dtype.base_dtype
    if not plain or dtype.size != np.dtype(dtype.as_numpy_dtype).itemsize or entry.shard_id or entry.slices:
        raise ValueError(f"{name} is not a plain array of numbers")
    if min(shape, default=0) < 0 or entry.offset < 0 or entry.size != int(np.prod(shape, dtype=object)) * dtype.size:
        raise ValueError(f"{name} is {dtype.name} {shape}, in {entry.size} bytes from {entry.offset} on")
    return entry


def _read(path, entry):
    dtype = np.dtype(tf.as_dtype(entry.dtype).as_numpy_dtype)
    values = np.fromfile(path, dtype, entry.size // dtype.itemsize, offset=entry.offset)
    return values.reshape([dimension.size for dimension in entry.shape.dim])  # fails if the file is too short


def _table(content):
    """Yields (key, value) of a table, with the keys in ascending order."""
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("its index has no footer")
    handle, position = [], 0
    for _ in range(4):  # offset and size: of an unused block, then of the block that lists the others
        number, position = _varint(footer, position)
        handle.append(number)
    last = None
    for _, value in _block(content, *handle[2:]):
        offset, position = _varint(value, 0)
        for key, entry in _block(content, offset, _varint(value, position)[0]):
            if last is not None and key <= last:  # otherwise a list that names one block again and again would not end
                raise ValueError("its index is not sorted")
            yield key, entry
            last = key


def _block(content, offset, size):
    """Yields (key, value) of one block. A key is stored without the bytes that it shares with the previous one."""
    block = content[offset : offset + size]
    if len(block) < max(size, 4) or content[offset + size] != 0:  # the byte after the block is its kind of compression
        raise ValueError("its index is cut off or compressed")
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _varint(content, position):
    """Reads a number of seven bits per byte, the lowest first. Returns it and the position after it."""
    number, shift = 0, 0
    while True:
        byte = content[position]
        number, shift, position = number | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return number, position
        if shift > 63:
            raise ValueError("its index holds a number that is too large")
