"""The cache of decoded images: found again, noticed if stale, damaged or on a full disk, and never the cause of an error."""

import concurrent.futures
import errno
import json
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import ROOT

from input_pipeline import sources, splits
from input_pipeline.config import DataConfig
from input_pipeline.splits import cache, resident
from input_pipeline.splits.cache import CachedSplit

SHAPE = (60, 8, 6, 3)


def make(seed=0, shape=SHAPE):
    """Images and labels of noise."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, shape, np.uint8), generator.integers(0, 10, shape[0]).astype(np.int32)


def kept(folder, fingerprint="one", name="noise", split="train[:90%]", shape=SHAPE):
    return CachedSplit(folder, name, split, shape, {"place": "/data", "files": fingerprint})


def assert_holds(found, images, labels):
    assert found is not None
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    assert found[0].dtype == np.uint8
    assert found[1].dtype == np.int32


def fail(*arguments):
    raise AssertionError(arguments)


@pytest.fixture
def stored(tmp_path):
    """A folder that the cache created, with one file in it."""
    folder = tmp_path / "not" / "there"
    kept(folder).store(*make(), fail)
    return folder


def test_what_is_stored_is_found(stored):
    assert_holds(kept(stored).find(fail), *make())
    assert [path.name[:25] for path in stored.iterdir()] == ["noise-train-90-8x6-" + kept(stored).path.name[19:25]]


@pytest.mark.parametrize("is_stored", [True, False])
def test_of_several_that_need_a_split_at_once_one_decodes(tmp_path, is_stored):
    """Threads stand for processes. If the first skips examples and stores nothing, the others decode at once."""
    everybody, decoding, lines = threading.Barrier(4), [], []

    def open_it(_):
        split = kept(tmp_path / "cache")
        assert split.find(fail) is None
        everybody.wait(10)
        with split.decoding(lines.append) as found:
            if found is None:
                decoding.append(time.monotonic())
                time.sleep(0.3)
                if is_stored:
                    split.store(*make(), fail)
            return found

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(open_it, range(4)))
    assert len(decoding) == (1 if is_stored else 4) and len(lines) == 3 and "waiting for another process" in lines[0]
    assert max(decoding) - min(decoding) < 0.5  # none waits for two others
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".images"] * is_stored
    for arrays in found:
        assert arrays is None or assert_holds(arrays, *make()) is None


def test_decoding_goes_on_where_nothing_can_be_locked(tmp_path):
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file"):
        with kept(folder).decoding(fail) as found:
            assert found is None


def test_what_is_found_cannot_be_changed(stored):
    """Writing to a batch that is a view would change the file and spoil all later runs."""
    for array in kept(stored).find(fail):
        assert not array.flags.writeable


@pytest.mark.parametrize("other", [{"split": "train"}, {"name": "other"}, {"shape": (60, 6, 8, 3)}])
def test_another_split_is_another_file(stored, other):
    """If two splits shared a file, each start would decode again, or take one split for the other."""
    assert kept(stored, **other).path != kept(stored).path
    assert kept(stored, **other).find(fail) is None


def test_a_changed_source_is_noticed_and_leaves_no_second_file(stored):
    """Otherwise training would use images that no longer exist, and stale files would fill the disk."""
    lines = []
    assert kept(stored, "two").find(lines.append) is None
    assert len(lines) == 1
    assert "the source has changed; decoding again" in lines[0]
    kept(stored, "two").store(*make(1), fail)
    assert_holds(kept(stored, "two").find(fail), *make(1))
    assert len(list(stored.iterdir())) == 1


def test_another_version_of_the_decoding_is_noticed(stored, monkeypatch):
    """Otherwise a new version would train on images that an older one decoded differently."""
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    lines = []
    assert kept(stored).find(lines.append) is None
    assert len(lines) == 1


END = cache.HEADER_BYTES + 60 * 8 * 6 * 3


@pytest.mark.parametrize("place", [0, 5, 60, 300, cache.HEADER_BYTES, cache.HEADER_BYTES + 5000, END - 1, END, END + 239])
def test_each_damaged_byte_is_noticed(stored, place):
    """With a flipped bit, training would use an image that is in no source."""
    path = kept(stored).path
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    lines = []
    assert kept(stored).find(lines.append) is None
    assert len(lines) == 1
    assert str(path) in lines[0]


@pytest.mark.parametrize("content", [
    b"", b"?", b" " * 5000, b"[]", b"7".ljust(4096), b"null".ljust(4096), json.dumps({"checksum": 1}).encode().ljust(4096),
    b"\x80\x04\x95".ljust(9000)])
def test_what_is_no_cache_file_is_replaced(tmp_path, content):
    """A half-written file, or somebody else's, must not end every start."""
    path = kept(tmp_path).path
    path.write_bytes(content)
    lines = []
    assert kept(tmp_path).find(lines.append) is None
    assert len(lines) == 1
    kept(tmp_path).store(*make(), fail)
    assert_holds(kept(tmp_path).find(fail), *make())


@pytest.mark.parametrize("change", [-1, -1000, -END, 1])
def test_a_file_of_another_length_is_refused(stored, change):
    """Reading beyond the end of a mapped file kills the process by a signal."""
    path = kept(stored).path
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size + change)
    lines = []
    assert kept(stored).find(lines.append) is None
    assert len(lines) == 1


def test_of_a_large_file_the_ends_and_blocks_between_are_looked_at(monkeypatch):
    """A checksum over hundreds of gigabytes would take too long at the start."""
    monkeypatch.setattr(cache, "BLOCK_BYTES", 10)
    monkeypatch.setattr(cache, "MOST_BLOCKS", 8)
    pixels, labels = make(shape=(1000, 1, 1, 3))
    pixels, whole = pixels.reshape(-1), []
    for place in range(3000):
        changed = pixels.copy()
        changed[place] ^= 1
        if cache._checksum(changed, labels) != cache._checksum(pixels, labels):
            whole.append(place)
    assert len(whole) == 80
    assert {0, 2999} <= set(whole)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/nowhere"])
def test_a_folder_that_cannot_be_written_is_worth_a_line(folder):
    """A read-only home, as on many clusters, must not end the run."""
    lines = []
    assert kept(pathlib.Path(folder)).find(lines.append) is None or not lines
    lines.clear()
    kept(pathlib.Path(folder)).store(*make(), lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(f"--cache_dir={folder}: ")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_is_worth_a_line_and_leaves_nothing(tmp_path, monkeypatch, failing):
    """Parts of a file that did not fit would keep the disk full."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, failing, full)
    lines = []
    kept(tmp_path).store(*make(), lines.append)
    assert len(lines) == 1
    assert "No space left" in lines[0]
    assert not list(tmp_path.iterdir())


def test_no_folder_is_no_cache(tmp_path):
    none = CachedSplit(cache.folder_of(""), "noise", "train", SHAPE, {})
    none.store(*make(), fail)
    assert none.find(fail) is None


def test_the_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache.folder_of("~/decoded")) == "/home/me/decoded"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert str(cache.folder_of(None)) == "/scratch/alexnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache.folder_of(None)) == "/home/me/.cache/alexnet"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # raises KeyError, as for a user of a container without an entry
    assert cache.folder_of(None) is None


def test_what_dead_processes_left_goes_and_what_others_write_stays(stored):
    """Otherwise each killed start would leave a file as large as the data. Another process may still be writing a new file."""
    old, new = (stored / f"{kept(stored).path.name}.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    kept(stored).store(*make(), fail)
    assert not old.exists()
    assert new.exists()


WRITE_AND_READ = """
import pathlib, sys
import numpy as np
from input_pipeline.splits.cache import CachedSplit
print("imported", file=sys.stderr)  # TensorFlow prints lines before this

folder, own = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for _ in range(100):
    kept = CachedSplit(folder, "noise", "train", (60, 8, 6, 3), {})
    kept.store(np.full((60, 8, 6, 3), own, np.uint8), np.full(60, own, np.int32), sys.exit)
    images, labels = kept.find(sys.exit)
    assert labels[0] in (1, 2) and (images == labels[0]).all() and (labels == labels[0]).all()
"""


def test_two_processes_at_once_do_no_damage(tmp_path):
    """Two workers on one machine, or two runs of a sweep, usually start at the same time."""
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path)]
    both = [subprocess.Popen([*command, own], cwd=ROOT, stderr=subprocess.PIPE, text=True) for own in "12"]
    errors = [process.communicate(timeout=60)[1].split("imported\n")[-1] for process in both]
    assert errors == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mapped_file_outlives_its_replacement(stored):
    """Otherwise the images of a run would change, or the run would die, when another start replaces the file."""
    images, labels = kept(stored).find(fail)
    kept(stored).store(*make(1), fail)
    assert_holds((images, labels), *make())


@pytest.fixture
def opened(data_dir, tmp_path):
    """Opens a split with a cache of its own; returns (split, lines, whether it was decoded)."""
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))

    def open_split(monkeypatch, flag="train_split", **values):
        lines, decoded, load = [], [], resident.load
        monkeypatch.setattr(resident, "load", lambda *arguments: decoded.append(1) or load(*arguments))
        config = DataConfig(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"), **values)
        split = splits.open_split(config, source, "test[:300]", flag, log=lines.append)
        monkeypatch.undo()
        return split, lines, bool(decoded)

    return open_split


@pytest.mark.parametrize("kind", ["memory", "device"])
def test_the_second_start_decodes_nothing(opened, monkeypatch, kind):
    """This is the purpose of the cache. The line must say where the images came from."""
    first, lines, decoded = opened(monkeypatch, input=kind)
    assert decoded
    assert not lines[0].endswith("from cache")
    second, lines, decoded = opened(monkeypatch, input=kind)
    assert not decoded
    assert len(lines) == 1
    assert lines[0].endswith(", from cache")
    for name in ("images", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    drawn = [next(iter(split.on_host.training_batches(1, 3, 64, ("crop", "flip")))) for split in (first, second)]
    np.testing.assert_array_equal(drawn[0]["image"], drawn[1]["image"])
    assert opened(monkeypatch, image_size=16)[2]  # another size has another file


def test_a_touched_record_file_is_noticed(tmp_path, data_dir):
    """Otherwise data prepared again under the same name would be ignored until somebody deletes the cache."""
    shutil.copytree(data_dir, tmp_path / "data")
    source = sources.open_source(DataConfig(data_dir=str(tmp_path / "data")))
    before = source.fingerprint("train[:5]")
    assert before == source.fingerprint("train[:5]")
    file = next(tmp_path.rglob("*-train.tfrecord*"))
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert source.fingerprint("train[:5]") != before


def test_a_cache_in_the_way_is_no_error(opened, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    split, lines, decoded = opened(monkeypatch)
    assert decoded
    assert split.num_examples == 300
    assert [line.startswith(f"--cache_dir={tmp_path / 'cache'}: ") for line in lines] == [False, True]
    _, lines, decoded = opened(monkeypatch, "validation_split")  # which need not say it again
    assert decoded
    assert len(lines) == 1
