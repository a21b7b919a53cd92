"""The covariance of patches compared with np.cov of patches cut in a loop, in memory and on a stream."""

import tracemalloc

import numpy as np
import pytest

from input_pipeline.common import batches
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming
from tests.input_pipeline.splits import test_stream

source = test_stream.source  # a fixture


def covariance_of(images, size):
    """np.cov of all patches, [row, column, channel] each."""
    patches = [image[y : y + size, x : x + size].reshape(-1) for image in images
               for y in range(image.shape[0] - size + 1) for x in range(image.shape[1] - size + 1)]
    return np.cov(np.array(patches, np.float64), rowvar=False, bias=True)


def smooth(count, height, width):
    """Images whose neighbouring pixels and channels are correlated."""
    images = np.random.default_rng(0).integers(0, 256, (count, height + 2, width + 1, 3)).astype(float)
    images[..., 1] += images[..., 0]
    return ((images[:, 2:, 1:] + images[:, 1:-1, 1:] + 2 * images[:, 2:, :-1]) / 8).astype(np.uint8)


@pytest.mark.parametrize("numbers", [1, 200, 10**9])  # one row of patches at once, a few, all
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_covariance_equals_numpy(monkeypatch, size, numbers):
    monkeypatch.setattr(batches, "SUMMED_NUMBERS", numbers)
    monkeypatch.setattr(resident, "SUMMED_PIXELS", 70)  # two images at once
    images = smooth(9, 5, 7)
    split = resident.ResidentSplit(images, np.zeros(9, np.int32))
    for count in (3, 4, 9, 5000):
        found = split.patch_covariance(size, count)
        assert found.shape == (3 * size**2,) * 2
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, covariance_of(images[:count], size), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(split.patch_covariance(size), found)


def test_only_the_first_5000_images_count():
    """Whoever changes the number changes the first layer of the network."""
    images = smooth(5001, 4, 4)
    images[5000] = 255
    split = resident.ResidentSplit(images, np.zeros(5001, np.int32))
    np.testing.assert_allclose(split.patch_covariance(2), covariance_of(images[:5000], 2), rtol=1e-9)


def test_a_stream_looks_at_its_middle_squares(source, monkeypatch):
    monkeypatch.setattr(streaming, "STATISTICS_EXAMPLES", 20)
    split = test_stream.stream(source)
    labels = [int(source.parse(record)["label"]) for _, record in source.records("train").take(20)]
    central = [test_stream.numbered_image(label)[2:30, 2:30] for label in labels]
    for count in (7, 5000):
        np.testing.assert_allclose(split.patch_covariance(2, count), covariance_of(central[:count], 2), rtol=1e-9, atol=1e-9)


def test_the_memory_stays_small():
    """All patches of this image at once would take 32 MB."""
    split = resident.ResidentSplit(np.zeros((1, 384, 384, 3), np.uint8), np.zeros(1, np.int32))
    tracemalloc.start()
    try:
        split.patch_covariance(3)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
