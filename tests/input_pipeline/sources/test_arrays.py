"""Arrays as scripts save them: empty ones, names of classes of any type, and images or labels without the other."""

import numpy as np
import pytest
from source_files import CLASSES, write_npz

from input_pipeline import sources
from input_pipeline.common.errors import UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.splits import resident

NO_IMAGES = {"x": np.zeros((0, 4, 4, 3), np.uint8), "y": np.zeros(0, int)}


def open_(path):
    return sources.open_source(DataConfig(dataset=f"npz:{path}", max_bad_examples=99))


def test_an_empty_array_is_named_if_its_split_is_used(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_test=NO_IMAGES["x"], y_test=NO_IMAGES["y"])
    source = open_(path)
    assert source.class_names == ("0", "1", "2") and source.image_shape == (8, 8, 3)
    assert resident.load(source, "train[:10]", 10, (8, 8)).num_examples == 10
    with pytest.raises(UnusableError, match=rf"^--test_split=test\[:5\]: {path}: the array x_test is empty, 0 images; "):
        source.num_examples("test[:5]", "test_split")
    path = write_npz(tmp_path / "b.npz", x_train=NO_IMAGES["x"], y_train=NO_IMAGES["y"])
    assert open_(path).num_examples("test", "test_split") == 30
    with pytest.raises(UnusableError, match=f"^--train_split=train: {path}: the array x_train is empty"):
        open_(path).num_examples("train", "train_split")
    np.savez(tmp_path / "c.npz", x_train=NO_IMAGES["x"], y_train=NO_IMAGES["y"])
    with pytest.raises(UnusableError, match=f"^{tmp_path / 'c.npz'}: the array x_train is empty, 0 images; "):
        open_(tmp_path / "c.npz")


@pytest.mark.parametrize("names", [CLASSES, [[name] for name in CLASSES], [name.encode() for name in CLASSES]])
def test_names_of_classes_of_any_form(tmp_path, names):
    """NumPy saves texts as bytes if they were read from HDF5 or a pickle. Ignoring them would call the classes 0, 1 and 2."""
    assert open_(write_npz(tmp_path / "a.npz", class_names=np.array(names))).class_names == CLASSES


@pytest.mark.parametrize(("arrays", "words"), [
    ({"class_names": np.arange(3)}, "the array class_names is int64 [3]; save it as an array of texts"),
    ({"class_names": np.zeros(0, "U3")}, "the array class_names is <U3 [0]; save"),
    ({"class_names": np.array([b"a", b"\xff", b"c"])}, "a name in class_names is not UTF-8"),
    ({"class_names": np.array(["a", " ", "c"])}, "name 1 in class_names is empty"),
    ({"y_val": np.zeros(3, int)}, "has no array x_val, but x_train, y_train, x_test, y_test, y_val"),
    ({"x_val": np.zeros((3, 8, 8), np.uint8)}, "has no array y_val, but x_train"),
    ({"x_test": np.zeros((30, 0, 8, 3), np.uint8)}, "the images of the array x_test have no pixel, [30, 0, 8, 3]"),
])
def test_arrays_that_lack_something(tmp_path, arrays, words):
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UnusableError) as caught:
        open_(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {words}") and "max_bad_examples" not in message and "\n" not in message
