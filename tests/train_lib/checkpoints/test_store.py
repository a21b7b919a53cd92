"""A checkpoint is whole or not there, whatever the disk, a kill or a stray file does to it."""

import errno
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from train_lib.checkpoints.store import CheckpointStore, DamagedCheckpoint, find_initial, verify
from train_lib.state import assign

DATA = "ckpt.data-00000-of-00001"
FILES = ("ckpt.index", DATA, "progress.json", "manifest.json")


def tensors_at(step):
    generator = np.random.default_rng(step)
    return {
        "model/conv/kernel": generator.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "model/conv/bias": generator.normal(size=4),
        "model/seed": np.arange(2, dtype=np.uint32),
        "step": np.int64(step),
    }


def save(store, step, is_best=False):
    store.save(step, tensors_at(step), {"progress": {"step": step}, "note": "größer"}, is_best)
    return store.folder / f"step-{step:08d}"


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Flushing takes most of the time here and cannot be seen by a process that lives on."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints", log=lambda line: None)


# What a save leaves.


def test_tensorflow_reads_what_was_saved(store):
    folder = save(store, 7, is_best=True)
    reader = tf.train.load_checkpoint(str(folder / "ckpt"))
    expected = tensors_at(7)
    assert set(reader.get_variable_to_shape_map()) == set(expected)
    for name, tensor in expected.items():
        read = reader.get_tensor(name)
        assert read.dtype == tensor.dtype
        np.testing.assert_array_equal(read, tensor)
    assert names(store) == ["best", "latest", "step-00000007"]
    assert (store.folder / "best").read_text() == (store.folder / "latest").read_text() == "step-00000007\n"


def test_verify_gives_back_step_description_and_tensors(store):
    checkpoint = verify(save(store, 7))
    assert checkpoint.step == 7 and checkpoint.description == {"progress": {"step": 7}, "note": "größer"}
    assert set(checkpoint.tensors("model/conv")) == {"model/conv/kernel", "model/conv/bias"}
    for name, tensor in checkpoint.tensors().items():
        np.testing.assert_array_equal(tensor, tensors_at(7)[name])


def test_manifest_lists_every_file_with_size_and_sha256(store):
    folder = save(store, 7)
    manifest = json.loads((folder / "manifest.json").read_text())
    others = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert manifest["step"] == 7 and sorted(path.name for path in others) == sorted(manifest["files"]) == sorted(FILES[:3])
    for path in others:
        data = path.read_bytes()
        assert manifest["files"][path.name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_same_state_gives_the_same_bytes(tmp_path):
    """No clock, no path, no random value: a run repeated with --deterministic can be compared by its files."""
    folders = [save(CheckpointStore(tmp_path / name), 7) for name in ("one", "another")]
    assert contents(folders[0]) == contents(folders[1])


def test_steps_beyond_eight_digits(store):
    save(store, 99_999_999)
    save(store, 100_000_000)
    assert store.steps() == [99_999_999, 100_000_000]
    assert store.newest().step == store.find("100000000").step == 100_000_000


# What verify finds.


def truncate(path, size=-1):
    path.write_bytes(path.read_bytes()[:size])


def edit_manifest(change):
    def damage(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


DAMAGES = {
    **{f"no {name}": lambda folder, name=name: (folder / name).unlink() for name in FILES},
    **{f"empty {name}": lambda folder, name=name: (folder / name).write_bytes(b"") for name in FILES},
    **{f"short {name}": lambda folder, name=name: truncate(folder / name) for name in FILES[:3]},
    **{f"first bit of {name}": lambda folder, name=name: flip_bit(folder / name, 0) for name in FILES},
    **{f"last bit of {name}": lambda folder, name=name: flip_bit(folder / name, -1) for name in FILES[:3]},
    "bit in the middle of the data": lambda folder: flip_bit(folder / DATA, (folder / DATA).stat().st_size // 2),
    "data is a folder": lambda folder: ((folder / DATA).unlink(), (folder / DATA).mkdir()),
    "no file": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "a dangling link": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    "half a manifest": lambda folder: truncate(folder / "manifest.json", 40),
    "manifest of zeros": lambda folder: (folder / "manifest.json").write_bytes(bytes(200)),
    "manifest not UTF-8": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{}"),
    "manifest nested deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    **{
        f"manifest {text}": lambda folder, text=text: (folder / "manifest.json").write_text(text)
        for text in ("[]", "null", "5", '"step"', "{}", '{"step": 7}', '{"step": 7, "files": []}', '{"step": 7, "files": 5}',
                     '{"step": 7, "files": {}}', '{"step": 7, "files": {"": {"bytes": 1, "sha256": ""}}}',
                     '{"step": 7, "files": {"..": {"bytes": 1, "sha256": ""}}}', '{"step": 7, "files": {"ckpt.index": 5}}')
    },
    "manifest without the data": edit_manifest(lambda manifest: manifest["files"].pop(DATA)),
    "manifest without progress.json": edit_manifest(lambda manifest: manifest["files"].pop("progress.json")),
    "manifest of another step": edit_manifest(lambda manifest: manifest.update(step=8)),
    "manifest with step as text": edit_manifest(lambda manifest: manifest.update(step="7")),
    "manifest with NaN bytes": edit_manifest(lambda manifest: manifest["files"][DATA].update(bytes=float("nan"))),
    "manifest without a SHA-256": edit_manifest(lambda manifest: manifest["files"][DATA].pop("sha256")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, damage):
    lines = []
    store = CheckpointStore(tmp_path / "checkpoints", log=lines.append)
    save(store, 5)
    folder = save(store, 7, is_best=True)
    DAMAGES[damage](folder)
    with pytest.raises(DamagedCheckpoint, match="step-00000007"):
        verify(folder)
    assert store.newest().step == store.find("latest").step == 5
    assert len(lines) == 2 and all("step-00000007" in line and "\n" not in line for line in lines)
    for which in ("best", "7"):
        with pytest.raises(UnusableError, match=r"5, 7|there are 5$") as error:
            store.find(which)
        assert f"--checkpoint={which}" in str(error.value) and "\n" not in str(error.value)


def test_every_single_flipped_bit_is_found(store):
    folder = save(store, 7)
    for name in FILES[:3]:
        path = folder / name
        for position in range(0, path.stat().st_size, 61):
            flip_bit(path, position)
            with pytest.raises(DamagedCheckpoint):
                verify(folder)
            flip_bit(path, position)
    assert verify(folder).step == 7


def test_swapped_folders_are_found(store):
    """Each agrees with its own manifest, and yet the step in the name would be a lie."""
    five, seven = save(store, 5), save(store, 7)
    five.rename(store.folder / "aside")
    seven.rename(five)
    (store.folder / "aside").rename(seven)
    for folder in (five, seven):
        with pytest.raises(DamagedCheckpoint, match="another checkpoint"):
            verify(folder)


def test_swapped_files_are_found(store):
    five, seven = save(store, 5), save(store, 7)
    shutil.copy(five / DATA, seven / DATA)
    with pytest.raises(DamagedCheckpoint, match="SHA-256"):
        verify(seven)


def test_none_valid_is_said_and_nothing_is_deleted(tmp_path):
    lines = []
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=1, log=lines.append)
    for step in (5, 7):
        flip_bit(save(store, step, is_best=True) / DATA, 0)
    before = contents(store.folder)
    with pytest.raises(UnusableError, match="no valid checkpoint") as error:
        store.newest()
    assert str(store.folder) in str(error.value) and "--workdir" in str(error.value) and "\n" not in str(error.value)
    assert len(lines) == 1 and contents(store.folder) == before  # keep=1: step 5 was no longer there


def test_no_checkpoint_at_all_is_not_an_error_for_newest(store):
    assert store.newest() is None and store.steps() == []
    store.folder.mkdir(parents=True)
    assert store.newest() is None


@pytest.mark.parametrize("name", ["../../outside", "../outside", "/tmp/outside", "ckpt.index/../../../outside", "a\x00b"])
def test_a_manifest_cannot_reach_outside_its_folder(tmp_path, name):
    """A checkpoint from elsewhere must neither read, nor change, nor vouch for a file beside it."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    folder = save(store, 7)
    for place in (tmp_path, tmp_path / "run", store.folder):
        (place / "outside").write_bytes(b"secret")
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit_manifest(lambda manifest: manifest["files"].update({name: entry}))(folder)
    before = contents(tmp_path)
    with pytest.raises(DamagedCheckpoint):
        verify(folder)
    store.remove_leftovers()
    assert contents(tmp_path) == before


# Finding.


def test_find(store):
    for step in (5, 7, 9):
        save(store, step, is_best=step == 7)
    assert [store.find(which).step for which in ("best", "latest", "5", "7", "0009")] == [7, 9, 5, 7, 9]
    with pytest.raises(UnusableError, match="there are 5, 7, 9") as error:
        store.find("6")
    assert "--checkpoint=6" in str(error.value)


GARBAGE_POINTERS = (b"", b"nothing\n", b"../../etc\n", b"step-00000099\n", b"step-7\n", b"\xff\xfe\x00", b"latest\n")


@pytest.mark.parametrize("text", GARBAGE_POINTERS)
def test_a_garbage_pointer_is_one_clear_error(store, text):
    save(store, 7, is_best=True)
    (store.folder / "best").write_bytes(text)
    (store.folder / "latest").write_bytes(text)
    with pytest.raises(UnusableError, match="--checkpoint=best.*there are 7"):
        store.find("best")
    assert store.find("latest").step == store.newest().step == 7  # found by looking, not by the pointer


def test_a_missing_best_is_an_error(store):
    save(store, 7)
    with pytest.raises(UnusableError, match="--checkpoint=best"):
        store.find("best")


@pytest.mark.parametrize("which", ["best", "latest", "7"])
def test_finding_in_a_folder_without_checkpoint(store, which):
    with pytest.raises(UnusableError, match="holds no checkpoint"):
        store.find(which)


def test_find_initial(store, tmp_path, monkeypatch):
    save(store, 5, is_best=True)
    folder = save(store, 7)
    assert find_initial(tmp_path / "run").step == 5
    assert find_initial(folder).step == find_initial(f"{folder}/").step == 7
    monkeypatch.chdir(folder)
    assert find_initial(".").step == 7
    with pytest.raises(SettingError, match="init_from"):
        find_initial(tmp_path)
    flip_bit(folder / DATA, 3)
    with pytest.raises(UnusableError, match="init_from"):
        find_initial(folder)


# What is kept.


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (0, 2, [1, 2, 3, 4, 5, 6]),
        (1, 2, [2, 6]),
        (2, 2, [2, 5, 6]),
        (3, 5, [4, 5, 6]),
        (1, 6, [6]),
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, best, kept):
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(1, 7):
        save(store, step, is_best=step in (1, best))
    assert store.steps() == kept
    assert store.find("best").step == best and store.find("latest").step == 6


def test_latest_is_kept_where_damaged_ones_are_newer(tmp_path):
    """After a fall back to an older checkpoint the next save is not the one with the highest step."""
    store = CheckpointStore(tmp_path, keep=1, log=lambda line: None)
    save(store, 5, is_best=True)
    flip_bit(save(store, 9) / DATA, 0)
    save(store, 7)
    assert store.steps() == [5, 7, 9] and store.newest().step == store.find("latest").step == 7


def test_foreign_files_are_never_touched(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    foreign = ["notes.txt", "step-1", "step-00000001.bak", "my.tmp", "step-00000001.tmp.txt", "best.old", "step-000000001"]
    for name in foreign[:3]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    for name in foreign[3:]:
        (tmp_path / name).write_text(name)
    for step in (1, 2, 3):
        save(store, step)
    store.remove_leftovers()
    assert store.steps() == [3]
    for name in foreign[:3]:
        assert (tmp_path / name / "file").read_text() == name
    for name in foreign[3:]:
        assert (tmp_path / name).read_text() == name


@pytest.mark.parametrize("name", ["step-00000002.old", "step-00000002.tmp", "copy", ".step-2.tmp"])
def test_a_copy_that_a_user_made_stays(tmp_path, name):
    store = CheckpointStore(tmp_path, keep=1)
    shutil.copytree(save(store, 2), tmp_path / name)
    before = contents(tmp_path / name)
    save(store, 3)
    store.remove_leftovers()
    assert store.steps() == [3] and contents(tmp_path / name) == before


def test_a_checkpoint_that_a_user_wrote_into_or_linked_stays(tmp_path):
    store = CheckpointStore(tmp_path / "run", keep=1)
    (save(store, 1) / "notes.txt").write_text("the one in the paper")
    save(store, 2).rename(tmp_path / "elsewhere")
    (store.folder / "step-00000002").symlink_to(tmp_path / "elsewhere")
    save(store, 3)
    save(store, 4)
    assert names(store) == ["latest", "step-00000001", "step-00000002", "step-00000004"]
    assert verify(store.folder / "step-00000001").step == 1 and (tmp_path / "elsewhere" / "manifest.json").exists()


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    with monkeypatch.context() as patch:
        fail_at(patch, shutil, "rmtree", 1, Killed())
        with pytest.raises(Killed):
            save(store, 2)
    assert store.steps() == [2]
    store.remove_leftovers()
    assert names(store) == ["latest", "step-00000002"]


def test_leftovers_of_a_killed_save_are_removed(store):
    save(store, 5, is_best=True)
    before = contents(store.folder)
    for name in (".step-00000006.tmp", ".step-00000005.old"):
        shutil.copytree(store.folder / "step-00000005", store.folder / name)
    (store.folder / ".step-00000004.tmp").write_text("")
    (store.folder / ".latest.tmp").write_text("step-0")
    (store.folder / ".best.tmp").write_text("")
    assert store.steps() == [5]
    store.remove_leftovers()
    assert contents(store.folder) == before and names(store) == ["best", "latest", "step-00000005"]


def test_nothing_to_remove_where_there_is_no_folder(store):
    store.remove_leftovers()
    assert not store.folder.exists()


# Failing saves.

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail_at(monkeypatch, owner, name, call, error=FULL):
    """Lets the `call`-th call of owner.name raise; returns a list whose length is the number of calls."""
    original, calls = getattr(owner, name), []

    def replacement(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, replacement)
    return calls


OPERATIONS = [
    (os, "fsync", FULL),
    (pathlib.Path, "mkdir", FULL),
    (pathlib.Path, "rename", FULL),
    (pathlib.Path, "replace", FULL),
    (pathlib.Path, "write_text", FULL),
    (tf.raw_ops, "SaveV2", tf.errors.ResourceExhaustedError(None, None, "No space left on device")),
    (tf.raw_ops, "SaveV2", tf.errors.UnknownError(None, None, "disk quota exceeded")),
]


@pytest.mark.parametrize("step", [7, 9])
@pytest.mark.parametrize(("owner", "name", "error"), OPERATIONS, ids=lambda value: getattr(value, "__name__", str(value))[:20])
def test_a_save_that_fails_leaves_the_old_checkpoints_valid(tmp_path, monkeypatch, owner, name, error, step):
    """Every call of every file operation fails once: `latest` and `best` always name a valid checkpoint, no rubbish stays.

    Step 9 is a new one, step 7 one that is there already.
    """
    failures = 0
    for call in range(1, 50):
        store = CheckpointStore(tmp_path / str(call))
        for old in (5, 7):
            save(store, old, is_best=old == 5)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, owner, name, call, error)
            try:
                save(store, step, is_best=True)
                break
            except (OSError, tf.errors.OpError) as raised:
                assert raised is error and len(calls) >= call
                failures += 1
        assert not [path.name for path in store.folder.iterdir() if path.suffix]
        assert {5, 7} <= set(store.steps())
        for old in store.steps():
            assert verify(store.folder / f"step-{old:08d}").step == old
        assert store.find("best").step in (5, step) and store.newest().step >= 7
        assert verify(store.folder / (store.folder / "latest").read_text().strip()).step in (7, step)
        save(store, step, is_best=True)  # with room again
        assert store.find("best").step == store.newest().step == max(7, step)
    assert failures >= 1 and len(calls) == failures


def test_a_first_save_that_fails_leaves_nothing(store, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, os, "fsync", 1)
        with pytest.raises(OSError, match="No space"):
            save(store, 1)
    assert names(store) == [] and store.newest() is None


class Killed(BaseException):
    """Stands for the end of the process: nothing after it may clean up."""


@pytest.mark.parametrize("step", [7, 9])
def test_a_kill_at_any_moment_loses_no_checkpoint(tmp_path, monkeypatch, step):
    """Killed between any two file operations; the next start cleans up and finds whole checkpoints alone.

    The dangerous moment is saving a step again: its old folder must not be gone before the new one is in place.
    """
    operations = [(os, "fsync"), (pathlib.Path, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "write_text")]
    kills = 0
    for owner, name in operations:
        for call in range(1, 50):
            store = CheckpointStore(tmp_path / f"{name}-{call}")
            for old in (5, 7):
                save(store, old, is_best=old == 7)
            with monkeypatch.context() as patch:
                fail_at(patch, owner, name, call, Killed())
                patch.setattr(CheckpointStore, "remove_leftovers", lambda self: None)
                try:
                    save(store, step, is_best=True)
                    break
                except Killed:
                    kills += 1
            store.remove_leftovers()
            assert {5, 7} <= set(store.steps()) and not [path for path in store.folder.iterdir() if path.suffix]
            for old in store.steps():
                verify(store.folder / f"step-{old:08d}")
            assert store.find("best").step in (7, step)
    assert kills > 10


def test_an_unwritable_place_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save(CheckpointStore(tmp_path / "file" / "checkpoints"), 1)


def test_everything_is_on_the_disk_before_it_has_its_name(store, monkeypatch):
    """After a power cut a file that was renamed but not flushed may be empty: each one is flushed first, the folder too."""
    happened = []
    opened = {}
    original_open, original_rename = os.open, pathlib.Path.rename

    def recording_open(path, *arguments, **options):
        descriptor = original_open(path, *arguments, **options)
        opened[descriptor] = pathlib.Path(path).name
        return descriptor

    monkeypatch.setattr(os, "open", recording_open)
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append(opened[descriptor]))
    monkeypatch.setattr(pathlib.Path, "rename", lambda old, new: (happened.append("rename"), original_rename(old, new))[1])
    save(store, 7)
    assert happened.pop(0) == "run"  # where the folder of checkpoints has just been made
    before = happened[: happened.index("rename")]
    assert set(before[:3]) == {"ckpt.index", DATA, "progress.json"} and before[3:] == ["manifest.json", ".step-00000007.tmp"]
    assert happened[len(before) + 1 :] == ["checkpoints", ".latest.tmp", "checkpoints"]


def test_saving_the_same_step_twice_takes_the_second(store):
    save(store, 5)
    folder = save(store, 7)
    store.save(7, {"model/kernel": np.ones(3)}, {"again": True}, is_best=True)
    assert verify(folder).description == {"again": True}
    assert set(verify(folder).tensors()) == {"model/kernel"}
    assert names(store) == ["best", "latest", "step-00000005", "step-00000007"]


# Assigning.


def variables():
    return {name: tf.Variable(tf.zeros(shape)) for name, shape in (("model/a", (2, 3)), ("model/b", (3,)), ("model/c", ()))}


def test_assign_by_name():
    ours = variables()
    tensors = {"model/a": np.ones((2, 3)), "model/b": np.arange(3.0), "model/c": np.float32(4), "more": np.ones(1)}
    assign(ours, tensors, "a checkpoint")
    for name, variable in ours.items():
        np.testing.assert_array_equal(variable.numpy(), tensors[name])


@pytest.mark.parametrize("wrong", ["model/a", "model/b", "model/c"])
@pytest.mark.parametrize("shape", [None, (4,), (3, 2), (1,), (2, 3, 1)])
def test_assign_changes_nothing_unless_all_fits(wrong, shape):
    """Half the weights of one network and half of another would train, and be wrong."""
    ours, tensors = variables(), {"model/a": np.ones((2, 3)), "model/b": np.ones(3), "model/c": np.float32(1)}
    if shape is None:
        del tensors[wrong]
    else:
        tensors[wrong] = np.ones(shape)
    with pytest.raises(UnusableError, match=wrong) as error:
        assign(ours, tensors, "some/folder")
    assert str(error.value).startswith("some/folder: ") and "another network" in str(error.value)
    assert all((variable.numpy() == 0).all() for variable in ours.values())
