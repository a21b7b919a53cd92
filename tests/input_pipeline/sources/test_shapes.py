"""The embedded data set: what is drawn, that nothing but the outline reveals the class, and preparing it with TFDS, offline."""

import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from input_pipeline.sources import shapes

OFFLINE = tfds.download.DownloadConfig(try_download_gcs=False)
CHANCE = 1 / len(shapes.CLASS_NAMES)


def draw_split(split):
    examples = [shapes.draw_example(split, index) for index in range(shapes.SPLIT_SIZES[split])]
    images, labels = zip(*examples, strict=True)
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def drawn():
    """{"train": (images, labels), "test": (images, labels)}, in the order of the indices."""
    return {split: draw_split(split) for split in shapes.SPLIT_SIZES}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*unused_args, **unused_kwargs):
        raise AssertionError("the network was tried")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    # TensorFlow reaches cloud storage from C++ without Python's sockets, but TFDS always calls this function first.
    monkeypatch.setattr(gcs_utils, "exists", refuse)


# ---- What is drawn


def test_an_image_depends_on_split_and_index_alone():
    before, label = shapes.draw_example("train", 7)
    shapes.draw_example("test", 3)
    np.random.default_rng(0).uniform(size=10)
    after, label_again = shapes.draw_example("train", 7)
    assert before.tobytes() == after.tobytes()
    assert label == label_again == 7
    assert before.tobytes() != shapes.draw_example("test", 7)[0].tobytes()


def test_counts_types_and_balance(drawn):
    for split, size in {"train": 5_000, "test": 1_000}.items():
        images, labels = drawn[split]
        assert images.shape == (size, 32, 32, 3)
        assert images.dtype == np.uint8
        assert np.bincount(labels).tolist() == [size // 10] * 10


def test_no_image_occurs_twice_within_or_across_the_splits(drawn):
    digests = {image.tobytes() for images, _ in drawn.values() for image in images}
    assert len(digests) == 6_000


def test_the_range_of_values_is_used_and_the_splits_are_alike(drawn):
    means = [drawn[split][0].mean() / 255 for split in ("train", "test")]
    deviations = [drawn[split][0].std() / 255 for split in ("train", "test")]
    assert means == pytest.approx([0.5, 0.5], abs=0.03)
    assert deviations == pytest.approx([0.3, 0.3], abs=0.05)


def test_the_shape_stands_out_from_its_surroundings():
    """At least half of the smallest shape's area differs from the border by much more than the noise."""
    rng = np.random.default_rng(0)
    for index in rng.integers(0, 5_000, size=50):
        image = shapes.draw_example("train", int(index))[0] / 255.0
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        distance = np.linalg.norm(image - np.median(border, axis=0), axis=-1)
        assert (distance > 0.3).sum() > 60, f"train image {index} shows nothing"


# ---- Geometry


@pytest.mark.parametrize("name", shapes.CLASS_NAMES)
@pytest.mark.parametrize("radius", [6.0, 8.5])
def test_all_shapes_cover_the_area_of_the_disk(name, radius):
    for stretch in (0.93, 1.0, 1.07):
        area = shapes.shape_mask(name, (15.7, 16.2), radius, rotation=0.4, stretch=stretch).sum()
        assert area == pytest.approx(np.pi * radius**2, rel=0.03)


@pytest.mark.parametrize("name", shapes.CLASS_NAMES)
def test_a_mirrored_shape_is_the_same_shape_at_another_angle(name):
    mask = shapes.shape_mask(name, (14.3, 17.1), 7.0, rotation=0.7, stretch=1.05)
    left_right = shapes.shape_mask(name, (32 - 14.3, 17.1), 7.0, rotation=np.pi - 0.7, stretch=1.05)
    up_down = shapes.shape_mask(name, (14.3, 32 - 17.1), 7.0, rotation=-0.7, stretch=1.05)
    np.testing.assert_allclose(mask[:, ::-1], left_right, atol=1e-9)
    np.testing.assert_allclose(mask[::-1], up_down, atol=1e-9)


def test_flips_do_not_turn_one_class_into_another():
    """Among all classes at all angles, the mirror image of a shape is most similar to its own class."""
    center = (16.0, 16.0)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    templates = np.array([
        [shapes.shape_mask(name, center, 7.0, angle).ravel() for angle in angles]
        for name in shapes.CLASS_NAMES
    ])
    for label, name in enumerate(shapes.CLASS_NAMES):
        mask = shapes.shape_mask(name, center, 7.0, rotation=0.33)
        for flipped in (mask[:, ::-1], mask[::-1], mask[::-1, ::-1]):
            disagreement = np.abs(templates - flipped.ravel()).sum(axis=-1).min(axis=-1)
            nearest, runner_up = np.argsort(disagreement)[:2]
            assert nearest == label, f"a flipped {name} looks like a {shapes.CLASS_NAMES[nearest]}"
            assert disagreement[runner_up] > 2 * disagreement[nearest]


# ---- What must not reveal the class


def color_features(images):
    """Mean, standard deviation and an 8-bin histogram of each channel: float64 [n, 30]."""
    pixels = images.reshape(len(images), -1, 3)
    bins = [(pixels // 32 == level).mean(axis=1) for level in range(8)]
    return np.concatenate([pixels.mean(axis=1) / 255, pixels.std(axis=1) / 255, *bins], axis=1)


def place_features(images):
    """Centroid, area and bounding box of the pixels that differ from the border's median colour: float64 [n, 7]."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    distance = np.linalg.norm(images - np.median(border, axis=1)[:, None, None], axis=-1)
    features = []
    for mask in distance > 0.4 * 255:
        rows, columns = np.nonzero(mask) if mask.any() else (np.array([16]), np.array([16]))
        box = [rows.min(), rows.max(), columns.min(), columns.max()]
        features.append([rows.mean(), columns.mean(), len(rows), *box])
    return np.array(features, dtype=np.float64)


def ridge_accuracy(drawn, features, penalty):
    """Test accuracy of a linear classifier fitted by ridge regression to one-hot labels."""
    (train_images, train_labels), (test_images, test_labels) = drawn["train"], drawn["test"]
    train, test = features(train_images), features(test_images)
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-9
    train, test = ((part - mean) / deviation for part in (train, test))
    targets = np.eye(10)[train_labels] - CHANCE
    weights = np.linalg.solve(train.T @ train + penalty * np.eye(train.shape[1]), train.T @ targets)
    return np.mean((test @ weights).argmax(axis=1) == test_labels)


def test_colour_statistics_tell_nothing(drawn):
    assert ridge_accuracy(drawn, color_features, penalty=10.0) < 0.15


def test_place_and_extent_tell_nothing_to_a_linear_classifier(drawn):
    assert ridge_accuracy(drawn, place_features, penalty=1.0) < 0.15


def test_raw_pixels_tell_little_to_a_linear_classifier(drawn):
    # Every second row and column: a quarter of the weights to solve for, and every shape is still visible.
    def pixels(images):
        return images[:, ::2, ::2].reshape(len(images), -1) / 255.0

    for penalty in (1e2, 1e4):
        assert ridge_accuracy(drawn, pixels, penalty) < 0.25


# ---- Through TFDS


def test_is_prepared_offline_once_and_read_back_unchanged(tmp_path, no_network, drawn, monkeypatch):
    builder = shapes.Shapes(data_dir=tmp_path)
    assert builder.name == "shapes"
    builder.download_and_prepare(download_config=OFFLINE)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == shapes.SPLIT_SIZES
    assert builder.info.features["label"].names == list(shapes.CLASS_NAMES)
    assert builder.info.features["image"].shape == (32, 32, 3)
    assert builder.info.supervised_keys == ("image", "label")

    for split, (images, labels) in drawn.items():
        label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        read = tfds.as_numpy(builder.as_dataset(split, as_supervised=True))
        stored = [(image.tobytes(), label) for image, label in read]
        assert dict(stored) == label_of
        assert len(stored) == shapes.SPLIT_SIZES[split]

    def draw_again(*unused_args):
        raise AssertionError("drawn a second time")

    monkeypatch.setattr(shapes, "draw_example", draw_again)
    second = shapes.Shapes(data_dir=tmp_path)
    second.download_and_prepare(download_config=OFFLINE)
    assert second.info.splits["train"].num_examples == 5_000
    image, label = next(iter(tfds.as_numpy(second.as_dataset("train[:1%]", as_supervised=True))))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and 0 <= label < 10
