"""A checkpoint folder changed in any way is found out, and the newest one that is whole is used."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from helpers import run_main

from input_pipeline.common.errors import UnusableError
from train_lib.checkpoints.store import CheckpointStore, DamagedCheckpoint, verify

STEPS = (5, 7, 9)
FILES = ("ckpt.index", "ckpt.data-00000-of-00001", "progress.json", "manifest.json")


def tensors_at(step):
    generator = np.random.default_rng(step)
    return {"model/kernel": generator.normal(size=(30, 4)).astype(np.float32), "model/bias": generator.normal(size=4)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    store = CheckpointStore(folder)
    for step in STEPS:
        store.save(step, tensors_at(step), {"progress": {"step": step}}, is_best=step == 9)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Each takes the newest folder and a random generator, and changes it.


def truncate(folder, dice):
    path = folder / dice.choice(FILES)
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def flip_one_bit(folder, dice):
    path = folder / dice.choice(FILES)
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def remove(folder, dice):
    (folder / dice.choice(FILES)).unlink()


def empty(folder, dice):
    (folder / dice.choice(FILES)).write_bytes(b"")


def append(folder, dice):
    with open(folder / dice.choice(FILES), "ab") as file:
        file.write(dice.randbytes(dice.randrange(1, 9)).replace(b" ", b"x").replace(b"\n", b"x"))


def take_from_another_step(folder, dice):
    name = dice.choice(FILES)
    shutil.copy(folder.with_name(f"step-{dice.choice((5, 7)):08d}") / name, folder / name)


def swap_two_files(folder, dice):
    one, other = (folder / name for name in dice.sample(FILES, 2))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def no_plain_file(folder, dice):
    path = folder / dice.choice(FILES)
    path.unlink()
    dice.choice((os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)))(path)


def edit_manifest(folder, dice):
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"][dice.choice(FILES[:3])]
    dice.choice((
        lambda: manifest.update(step=dice.choice((5, 7, 10, -9, "9", 9.5, None))),
        lambda: manifest["files"].pop(dice.choice(FILES[:3])),
        lambda: manifest["files"].update({dice.choice(("more", "../best", "a/ckpt.index", "")): entry}),
        lambda: entry.update(bytes=entry["bytes"] + dice.choice((-1, 1, 2**40))),
        lambda: entry.update(sha256=entry["sha256"][::-1]),
        lambda: entry.pop(dice.choice(("bytes", "sha256"))),
        lambda: manifest.update(files=dice.choice((None, [], {}, "files", list(manifest["files"])))),
        lambda: manifest.pop(dice.choice(("files", "step"))),
    ))()
    (folder / "manifest.json").write_text(json.dumps(manifest))


MUTATIONS = (truncate, flip_one_bit, flip_one_bit, remove, empty, append, take_from_another_step, swap_two_files, no_plain_file,
             edit_manifest)
GARBAGE = (b"", b"nothing\n", b"../../etc\n", b"step-00000099\n", b"step-9\n", b"\xff\xfe\x00", b"best\n", b"step-00000009/..\n",
           b"x" * 100_000, bytes(20))


@pytest.mark.parametrize("first", range(0, 180, 20))
def test_180_changes_of_the_newest_checkpoint(whole, tmp_path, first):
    """180 of 180 are said, and the one before is taken with the values that it was saved with: none is loaded in silence."""
    for seed in range(first, first + 20):
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        change = MUTATIONS[seed % len(MUTATIONS)]
        change(folder / "step-00000009", random.Random(seed))
        lines = []
        store = CheckpointStore(folder, log=lines.append)
        with pytest.raises(DamagedCheckpoint, match="step-00000009"):
            verify(folder / "step-00000009")
        found = store.newest()
        assert found.step == 7 and len(lines) == 1 and "step-00000009" in lines[0] and "\n" not in lines[0], (seed, change)
        for name, tensor in tensors_at(7).items():
            np.testing.assert_array_equal(found.tensors()[name], tensor)
        with pytest.raises(UnusableError, match="--checkpoint=best"):
            store.find("best")


@pytest.mark.parametrize("pointer", ["best", "latest"])
@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_20_pointers_of_garbage(whole, tmp_path, pointer, number):
    """The newest valid checkpoint replaces `latest`. A `best` that cannot be used is reported, never guessed."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    (folder / pointer).write_bytes(GARBAGE[number])
    store = CheckpointStore(folder, log=lambda line: None)
    assert store.newest().step == store.find("latest").step == 9
    if pointer == "best":
        with pytest.raises(UnusableError, match="--checkpoint=best.*there are 5, 7, 9"):
            store.find("best")
    else:
        assert store.find("best").step == 9


@pytest.mark.slow
def test_where_none_is_valid_the_run_ends_with_code_3_and_nothing_is_overwritten(whole, tmp_path, data_dir):
    """A new run in this folder would throw away what somebody may still repair."""
    shutil.copytree(whole, tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 9, "epoch": 1.0}\n')
    for step in STEPS:
        flip_one_bit(tmp_path / "checkpoints" / f"step-{step:08d}", random.Random(step))
    before = contents(tmp_path)
    done = run_main(f"--workdir={tmp_path}", f"--data_dir={data_dir}")
    assert done.returncode == 3 and done.stderr.count("error: ") == 1 and "no valid checkpoint" in done.stderr
    assert "Traceback" not in done.stderr and contents(tmp_path) == before
