"""Opening splits: TFDS slicing, in memory or as a stream, images of any kind, and bad data."""

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import sources, splits
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig


class GreyDigitsInTest(tfds.core.GeneratorBasedBuilder):
    """28 x 28 grey PNGs; the grey value is the index."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(28, 28, 1), encoding_format="png")
        features = {"image": image, "label": tfds.features.ClassLabel(names=["even", "odd"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"image": np.full((28, 28, 1), index, np.uint8), "label": index % 2}


class PhotosInTest(tfds.core.GeneratorBasedBuilder):
    """JPEGs of different sizes, stored in order, with a feature that is not used."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, disable_shuffling=True,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=3),
                "photographer": tfds.features.Text(),
            }),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(12):
            image = np.full((40 + 5 * index, 90 - 4 * index, 3), 20 * index, np.uint8)
            yield index, {"image": image, "label": index % 3, "photographer": "nobody"}


class UnlabelledInTest(GreyDigitsInTest):
    """Like the test split of ImageNet: no labels."""

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"image": np.zeros((28, 28, 1), np.uint8), "label": -1}


def _message(error, function, *arguments, **more):
    with pytest.raises(error) as caught:
        function(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("split", [
    "nope", "", "train[:90", "train[a:b]", "train[::2]", "train[:0]", "train[90%:10%]", "train[5:3]+test", "train[9999:]",
])
def test_splits_that_cannot_work_are_setting_errors(data_dir, split):
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    message = _message(SettingError, source.num_examples, split, "validation_split")
    assert message.startswith(f"--validation_split={split}: ")
    assert "larger slice" in message or "train (5000), test (1000)" in message


@pytest.mark.parametrize(("split", "count"), [
    ("train", 5000), ("train[:90%]", 4500), ("train[-5:]", 5), ("train[:10%]+test", 1500), ("train[10:20]+train[15:30]", 25),
])
def test_tfds_slices_count_as_tfds_counts_them(data_dir, split, count):
    assert sources.open_source(DataConfig(data_dir=str(data_dir))).num_examples(split, "train_split") == count


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_grey_images_get_three_channels(tmp_path, mode):
    config = DataConfig(dataset="grey_digits_in_test", data_dir=str(tmp_path), input=mode)
    source = sources.open_source(config)
    assert source.image_shape == (28, 28, 3)
    assert source.class_names == ("even", "odd")
    split = splits.open_split(config, source, "train", "train_split", log=lambda line: None)
    batch = next(iter(split.evaluation_batches(40)))
    value = batch["image"].numpy()[:, 0, 0, 0]
    assert (batch["image"].numpy() == value[:, None, None, None]).all()
    assert sorted(value) == list(range(40))
    np.testing.assert_array_equal(batch["label"], value % 2)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_images_of_varying_size_want_an_image_size(tmp_path, mode):
    config = DataConfig(dataset="photos_in_test", data_dir=str(tmp_path), input=mode)
    source = sources.open_source(config)
    assert source.image_shape is None
    message = _message(SettingError, splits.open_split, config, source, "train", "train_split", log=lambda line: None)
    assert message.startswith("--image_size=0: ")
    config = DataConfig(dataset="photos_in_test", data_dir=str(tmp_path), input=mode, image_size=48)
    split = splits.open_split(config, source, "train", "train_split", log=lambda line: None)
    batch = next(iter(split.evaluation_batches(12)))
    assert batch["image"].shape == (12, 48, 48, 3)
    expected = np.full((12, 48, 48, 3), 20 * np.arange(12)[:, None, None, None])  # stored in order, each of one colour
    np.testing.assert_allclose(batch["image"], expected, atol=2)  # JPEG
    np.testing.assert_array_equal(batch["label"], np.arange(12) % 3)


@pytest.mark.parametrize(("free", "path"), [(1.0, "in memory"), (1e-6, "as a stream")])
def test_what_fits_is_held_in_memory_and_one_line_says_so(data_dir, monkeypatch, free, path):
    monkeypatch.setattr(splits, "free_gigabytes", lambda: free)
    config, lines = DataConfig(data_dir=str(data_dir), cache_dir=""), []
    splits.open_split(config, sources.open_source(config), "test", "test_split", log=lines.append)
    classes = "10 classes (disk, ring, triangle, square, star, ...)"
    assert lines == [f"test of shapes: 1000 images of 32 x 32 in {classes}, 0.0031 GB, {path}"]


def test_free_memory_counts_the_page_cache():
    fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024 / 1e9
    assert splits.free_gigabytes() == pytest.approx(available, rel=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_ends_at_the_limit_of_a_container(tmp_path, version):
    """If a batch system allows 8 of the machine's 500 GB, reading 50 GB into memory would kill the job."""
    files = {"proc/meminfo": "MemTotal: 500000000 kB\nMemAvailable: 400000000 kB\n"}
    group = {"memory.max": "8000000000", "memory.current": "6000000000", "memory.stat": "anon 1000000000\nfile 5000000000\n"}
    if version == 1:
        names = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")
        group = dict(zip(names, [*list(group.values())[:2], "cache 1\ntotal_cache 5000000000\n"], strict=True))
    for name, text in (files | {f"sys/fs/cgroup/{name}": text for name, text in group.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert splits.free_gigabytes(tmp_path) == pytest.approx(7)
    if version == 2:
        (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
        assert splits.free_gigabytes(tmp_path) == pytest.approx(409.6)


def test_missing_shortened_and_damaged_files_are_told_in_one_line(tmp_path):
    config = DataConfig(dataset="grey_digits_in_test", data_dir=str(tmp_path))
    source = sources.open_source(config)
    file = next(tmp_path.rglob("*-train.tfrecord*"))
    whole = file.read_bytes()
    first_record = 8 + 4 + int.from_bytes(whole[:8], "little") + 4
    for content in (whole[:first_record], whole[:200] + b"?" + whole[201:], None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        message = _message(UnusableError, splits.open_split, config, source, "train", "train_split", log=lambda line: None)
        assert "grey_digits_in_test" in message


def test_a_split_without_labels_is_refused(tmp_path):
    config = DataConfig(dataset="unlabelled_in_test", data_dir=str(tmp_path))
    source = sources.open_source(config)
    message = _message(UnusableError, splits.open_split, config, source, "test", "test_split", log=lambda line: None)
    assert "without a label" in message
