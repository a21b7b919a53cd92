"""Finding, preparing and reading data sets: offline, read-only, with several processes at once, and with every mistake."""

import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers import ROOT

from input_pipeline import sources, splits
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.sources import tfds as tfds_source


class PatchesInTest(tfds.core.GeneratorBasedBuilder):
    """50 small PNGs."""

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


class BoxesInTest(PatchesInTest):
    """A data set that is not for image classification."""

    def _info(self):
        features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()})}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


ARCHIVE = b"the pixels"


class DownloadedInTest(PatchesInTest):
    """A data set that needs one archive from the network."""

    URL = "https://example.invalid/pixels.tar.gz"
    url_infos: ClassVar = {
        URL: tfds.download.checksums.UrlInfo(len(ARCHIVE), hashlib.sha256(ARCHIVE).hexdigest(), "pixels.tar.gz")
    }

    def _split_generators(self, dl_manager):
        assert pathlib.Path(dl_manager.download(self.URL)).read_bytes() == ARCHIVE
        return super()._split_generators(dl_manager)


@pytest.fixture
def no_network(monkeypatch):
    """Makes every attempt to reach another machine fail, and returns the list of attempts."""
    attempts = []

    def refuse(*arguments, **keywords):
        attempts.append(arguments)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return attempts


def _open(name, folder, **more):
    return sources.open_source(DataConfig(dataset=name, data_dir=str(folder), **more))


def _message(error, function, *arguments, **more):
    with pytest.raises(error) as caught:
        function(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _state(folder):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_a_prepared_folder_is_opened_without_network_and_nothing_is_written(tmp_path, no_network, monkeypatch):
    _open("patches_in_test", tmp_path)
    for path in [*tmp_path.rglob("*"), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = _state(tmp_path)
    monkeypatch.setattr(tfds_source, "_only_process", None)  # no lock either
    try:
        config = DataConfig(dataset="patches_in_test", data_dir=str(tmp_path))
        source = sources.open_source(config)
        split = splits.open_split(config, source, "test", "test_split", log=lambda line: None)
        assert split.num_examples == 10
        assert _state(tmp_path) == before
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert no_network == []


def test_preparing_what_is_drawn_here_needs_no_network(tmp_path, no_network, capsys):
    _open("patches_in_test", tmp_path)
    _open("patches_in_test", tmp_path)
    output = capsys.readouterr()
    assert no_network == []
    assert output.out == ""
    assert output.err.count("preparing patches_in_test 1.0.0 in ") == 1


@pytest.mark.parametrize(("name", "put"), [
    ("cifar10", "put the prepared folder cifar10/3.0.2 into {0}, or give by --data_dir a folder that holds it or can be written, "
                "or put cifar-10-binary.tar.gz into {0}/downloads/manual"),
    ("downloaded_in_test", "or put pixels.tar.gz into {0}/downloads/manual"),
])
def test_without_data_and_network_the_error_says_what_to_put_where(tmp_path, no_network, name, put):
    message = _message(UnusableError, _open, name, tmp_path)
    assert message.startswith(f"--dataset={name}: ")
    assert put.format(tmp_path) in message
    assert len(no_network) == 1  # TFDS itself would have retried for minutes


def test_an_archive_in_the_manual_folder_is_enough(tmp_path, no_network):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "pixels.tar.gz").write_bytes(ARCHIVE)
    assert _open("downloaded_in_test", tmp_path).num_examples("train", "train_split") == 40
    assert no_network == []


def test_a_wrong_archive_is_told_in_one_line(tmp_path, no_network):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "pixels.tar.gz").write_bytes(b"something else")
    assert "wrong checksum" in _message(UnusableError, _open, "downloaded_in_test", tmp_path)


@pytest.mark.parametrize("name", ["shapes", "patches_in_test"])
def test_a_data_dir_that_cannot_be_made_is_told_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    message = _message(UnusableError, _open, name, tmp_path / "file" / "below")
    assert f"--dataset={name}" in message
    assert str(tmp_path / "file" / "below") in message


@pytest.fixture
def spare(tmp_path, monkeypatch):
    """The folder for the embedded data set where the default folder, here below a file, cannot be used."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", "/dev/null/home/tensorflow_datasets")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"alexnet-{os.getuid()}"


def test_without_a_usable_home_the_embedded_data_lie_elsewhere(data_dir, spare, capsys):
    spare.symlink_to(data_dir)
    source = sources.open_source(DataConfig())
    assert source.split_sizes() == {"train": 5000, "test": 1000}
    line = f"/dev/null/home/tensorflow_datasets cannot be used; the embedded data set is in {spare}\n"
    assert capsys.readouterr() == ("", line)


def test_a_spare_folder_of_somebody_else_is_not_read(data_dir, spare, monkeypatch):
    us = os.getuid() + 1
    spare.with_name(f"alexnet-{us}").symlink_to(data_dir)
    monkeypatch.setattr(os, "getuid", lambda: us)
    message = _message(UnusableError, sources.open_source, DataConfig())
    assert message.startswith("--dataset=shapes: cannot be prepared in /dev/null/home/tensorflow_datasets (NotADirectoryError")
    assert "--data_dir" in message


def test_other_data_need_a_home_or_a_data_dir(spare, monkeypatch, no_network):
    message = _message(UnusableError, sources.open_source, DataConfig(dataset="patches_in_test"))
    assert "/dev/null/home/tensorflow_datasets" in message
    assert "give by --data_dir a folder that holds it or can be written" in message
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", "~/tensorflow_datasets")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    message = _message(UnusableError, sources.open_source, DataConfig(dataset="patches_in_test"))
    assert message == "--data_dir: not given, and there is no home folder for ~/tensorflow_datasets; give a folder"
    assert not os.path.exists("~")


@pytest.mark.parametrize(("name", "hint"), [
    ("cifar11", "cifar10"), ("CIFAR-10", "cifar10"), ("shape", "shapes"), ("cifar10:9.9.9", "only: 3.0.2"),
    ("qqqqqqqqqq", "TFDS catalogue"), ("../x", "no such data set"), ("boxes_in_test", "image-classification"),
])
def test_names_that_cannot_work_are_setting_errors(tmp_path, no_network, name, hint):
    message = _message(SettingError, _open, name, tmp_path)
    assert message.startswith(f"--dataset={name}: ")
    assert hint in message
    assert not list(tmp_path.iterdir())
    assert no_network == []


PREPARE = """
import pathlib, sys, time
from input_pipeline.sources import shapes
from input_pipeline import sources
from input_pipeline.config import DataConfig
shapes.SPLIT_SIZES.update(train=50, test=10)
folder, me = pathlib.Path(sys.argv[1]), sys.argv[2]
(folder.parent / f"ready-{me}").touch()
while len(list(folder.parent.glob("ready-*"))) < 3:
    time.sleep(0.01)
source = sources.open_source(DataConfig(data_dir=str(folder)))
print(source.num_examples("train", "train_split"), len(source.class_names))
"""


def test_of_three_processes_one_prepares_and_all_read(tmp_path):
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(me)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for me in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert [output for output, _ in outputs] == ["50 10\n"] * 3
    assert sum(errors.count("preparing shapes") for _, errors in outputs) == 1


HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(99)
"""


def test_the_lock_of_a_killed_process_does_not_block(tmp_path, capsys):
    lock = tmp_path / ".patches_in_test.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        opened = []
        waiting = threading.Thread(target=lambda: opened.append(_open("patches_in_test", tmp_path)))
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive()  # the lock holds as long as its owner lives
        holder.send_signal(signal.SIGKILL)
    waiting.join(timeout=30)
    assert len(opened) == 1
    assert f"waiting for another process that prepares data ({lock})" in capsys.readouterr().err


def test_parsing_reads_the_encoded_image_as_tfds_stored_it(data_dir):
    source = _open("shapes", data_dir)
    builder = tfds.builder("shapes", data_dir=data_dir)
    for (_, record), expected in zip(source.records("test[:20]"), builder.as_dataset("test[:20]"), strict=True):
        example = source.parse(record)
        assert example["image"].dtype == tf.string
        np.testing.assert_array_equal(tf.io.decode_png(example["image"]), expected["image"])
        assert example["label"] == expected["label"]
