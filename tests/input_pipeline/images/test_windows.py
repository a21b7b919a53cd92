"""The windows of a resident split compared with np.pad, a slice and a mirror image."""

import numpy as np
import pytest

from input_pipeline.images import windows as windows_module
from input_pipeline.images.windows import Windows

SHAPES = [(8, 8), (5, 9), (9, 5), (3, 3)]
# The widest reflection shows the whole image but its edge.
BORDERS = [(shape, padding, "constant") for shape in SHAPES for padding in (0, 1, 3)]
BORDERS += [(shape, padding, "reflect") for shape in SHAPES for padding in (0, 1, min(shape) - 1)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("shape", "padding", "mode"), BORDERS)
def test_each_window_of_each_image(monkeypatch, shape, padding, mode, flip):
    """A row or image may share its padding with the next, so one pixel too far would show pixels of the neighbour."""
    monkeypatch.setattr(windows_module, "BLOCK_IMAGES", 4)  # the table is filled in two parts
    images = np.random.default_rng(0).integers(1, 256, (6, *shape, 3), np.uint8)
    windows = Windows(images, padding, flip, {"constant": "zeros"}.get(mode, mode))
    index, top, left, mirrored = (values.ravel() for values in np.meshgrid(
        np.arange(6), np.arange(2 * padding + 1), np.arange(2 * padding + 1), [False, True][: 1 + flip]))
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)
    for window, i, y, x, turned in zip(windows.cut(index, top, left, mirrored), index, top, left, mirrored, strict=True):
        expected = padded[i, y : y + shape[0], x : x + shape[1]]
        np.testing.assert_array_equal(window, expected[:, ::-1] if turned else expected)


def test_read_only_and_strided_images():
    """Images mapped from a cache are read-only, and a slice of an array may not be contiguous."""
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)
    images.flags.writeable = False
    for part in (images, images[::2], images[:, ::-1]):
        cut = Windows(part, 0, False).cut(np.arange(len(part)), 0, 0, np.zeros(len(part), bool))
        np.testing.assert_array_equal(cut, part)
        assert cut.flags.writeable
        np.testing.assert_array_equal(Windows(part, 0, True).cut(np.array([1]), 0, 0, np.array([True]))[0], part[1, :, ::-1])


def test_what_the_table_costs():
    """The share of memory for --input=auto depends on it."""
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    assert Windows(images, 4, True)._table.nbytes / images.nbytes == pytest.approx(2.53, abs=0.01)
    assert Windows(images, 4, True, "reflect")._table.nbytes / images.nbytes == 2 * (40 / 32) ** 2
    assert Windows(images)._table is images
