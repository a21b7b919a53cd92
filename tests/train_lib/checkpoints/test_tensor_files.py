"""The reader of checkpoints against TensorFlow's, and against indexes that end a process which TensorFlow reads them in."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from input_pipeline.common.errors import UnusableError
from train_lib.checkpoints.tensor_files import read_tensors

DATA = "ckpt.data-00000-of-00001"


def write(folder, tensors):
    """As TensorFlow writes them."""
    names = sorted(tensors)
    arrays = [tensors[name] for name in names]
    tf.raw_ops.SaveV2(prefix=str(folder / "ckpt"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=arrays)


def test_tensors_are_those_that_tensorflow_reads(tmp_path):
    """Of every type that a checkpoint holds, of no dimension and of no element; an index of several blocks."""
    generator = np.random.default_rng(0)
    tensors = {f"model/{number:04}{'_layer' * 40}/kernel": generator.normal(size=(2, number % 3)) for number in range(3000)}
    tensors |= {
        f"kinds/{dtype}": generator.integers(0, 100, (2, 3)).astype(dtype)
        for dtype in ("float16", "float32", "float64", "int8", "uint8", "int32", "uint32", "int64", "bool")
    } | {"kinds/scalar": np.int64(-5), "kinds/bfloat16": np.asarray(tf.constant([1.5, -2], tf.bfloat16))}
    write(tmp_path, tensors)
    assert (tmp_path / "ckpt.index").stat().st_size > 2**18  # more than one block
    reader = tf.train.load_checkpoint(str(tmp_path / "ckpt"))
    found = read_tensors(tmp_path / "ckpt")
    assert found.keys() == reader.get_variable_to_shape_map().keys() == tensors.keys()
    for name in [*found][::50] + [name for name in found if name.startswith("kinds/")]:
        expected = reader.get_tensor(name)
        assert found[name].dtype == np.asarray(expected).dtype, name
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert read_tensors(tmp_path / "ckpt", "kinds/").keys() == {name for name in tensors if name.startswith("kinds/")}


def varint(number):
    encoded = b""
    while number > 127:
        encoded, number = encoded + bytes([number & 127 | 128]), number >> 7
    return encoded + bytes([number])


def block(pairs, num_restarts=1):
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    return body + struct.pack("<I", 0) * num_restarts + struct.pack("<I", num_restarts)


def table(pairs, times=1, compressed=b"\0"):
    """A table by hand, whose list of blocks names its only block `times` times."""
    content, handles = b"", []
    for one in (block(pairs), block([])):
        handles.append(varint(len(content)) + varint(len(one)))
        content += one + compressed + bytes(4)
    index = block([(bytes([number]), handles[0]) for number in range(times)])
    footer = handles[1] + varint(len(content)) + varint(len(index))
    return content + index + b"\0" + bytes(4) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(dtype=1, dims=(3, 4), offset=0, size=48, **more):
    message = BundleEntryProto(dtype=dtype, offset=offset, size=size, **more)
    for dim in dims:
        message.shape.dim.add(size=dim)
    return message.SerializeToString()


HEADER = BundleHeaderProto(num_shards=1).SerializeToString()
GOOD = [(b"", HEADER), (b"a", entry())]
# With a checksum each, TensorFlow's reader ends the process by SIGABRT on "negative", "beyond int64", "reference" and "300
# dimensions", tried with 2.21; nobody has to make one, a manifest from elsewhere vouches for any file.
MADE_UP = {
    "terabytes": table([(b"", HEADER), (b"a", entry(dims=(2**20, 2**20)))]),
    "beyond int64": table([(b"", HEADER), (b"a", entry(dims=(2**40, 2**40)))]),
    "negative": table([(b"", HEADER), (b"a", entry(dims=(-3, -4)))]),
    "300 dimensions": table([(b"", HEADER), (b"a", entry(dims=[1] * 300, size=4))]),
    "no element of many": table([(b"", HEADER), (b"a", entry(dims=(0, 2**62), size=0))]),
    "beyond the file": table([(b"", HEADER), (b"a", entry(offset=2**50))]),
    "before the file": table([(b"", HEADER), (b"a", entry(offset=-8))]),
    "half beyond the file": table([(b"", HEADER), (b"a", entry(offset=24))]),
    "negative size": table([(b"", HEADER), (b"a", entry(size=-48))]),
    "texts": table([(b"", HEADER), (b"a", entry(dtype=7))]),
    "variant": table([(b"", HEADER), (b"a", entry(dtype=21))]),
    "reference": table([(b"", HEADER), (b"a", entry(dtype=101))]),
    "four bits": table([(b"", HEADER), (b"a", entry(dtype=29))]),
    "no dtype": table([(b"", HEADER), (b"a", entry(dtype=77))]),
    "another shard": table([(b"", HEADER), (b"a", entry(shard_id=3))]),
    "the same bytes a hundred times": table([(b"", HEADER), *((b"a%03d" % number, entry()) for number in range(100))]),
    "the same block twice": table(GOOD, times=2),
    "not sorted": table([(b"", HEADER), (b"b", entry()), (b"a", entry())]),
    "no header": table([(b"a", entry())]),
    "big-endian": table([(b"", BundleHeaderProto(endianness=1).SerializeToString()), (b"a", entry())]),
    "compressed": table(GOOD, compressed=b"\1"),
    "name not UTF-8": table([(b"", HEADER), (b"\xff", entry())]),
    "no message": table([(b"", HEADER), (b"a", b"\xff" * 20)]),
    "cut": table(GOOD)[10:],
    "empty": b"", "text": b"checkpoint" * 10, "zeros": bytes(200),
    "endless number": table(GOOD)[:-48] + b"\xff" * 40 + struct.pack("<Q", 0xDB4775248B80FB57),
}


def test_a_table_by_hand_is_read(tmp_path):
    """Else the made-up ones below might fail for another reason than theirs."""
    (tmp_path / DATA).write_bytes(np.arange(12, dtype=np.float32).tobytes())
    (tmp_path / "ckpt.index").write_bytes(table(GOOD))
    np.testing.assert_array_equal(read_tensors(tmp_path / "ckpt")["a"], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("name", MADE_UP)
def test_a_made_up_index_is_refused(tmp_path, name):
    (tmp_path / DATA).write_bytes(bytes(48))
    (tmp_path / "ckpt.index").write_bytes(MADE_UP[name])
    with pytest.raises(UnusableError, match="is not a TensorFlow checkpoint, or it is damaged") as error:
        read_tensors(tmp_path / "ckpt")
    assert str(error.value).startswith(f"{tmp_path / 'ckpt'}: ") and error.value.exit_code == 3
