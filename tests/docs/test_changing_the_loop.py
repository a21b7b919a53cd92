"""The diffs of docs/changing-the-loop.md: they fit the files as they are, stay small, and do what the page says."""

import ast
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

import alexnet
from input_pipeline.splits.resident import ResidentSplit

PAGE = (ROOT / "docs" / "changing-the-loop.md").read_text()
CHANGES = ("loss", "penalty", "optimizer", "metric", "network")  # in the order of the page
DIFFS = dict(zip(CHANGES, re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL), strict=True))
MOST_LINES = 15
HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*\n", re.MULTILINE)
OPTIONS, RATE, COUNT, BATCH = "width=0.2,dense_units=32", 0.01, 24, 8


def apply(diff, read):
    """{path: new text}, from the present text `read(path)`; a hunk must fit at one place, and as many lines as its head says."""
    changed = {}
    for part in re.split(r"^--- a/", diff, flags=re.MULTILINE)[1:]:
        head, *hunks = re.split(r"(?=^@@ )", part, flags=re.MULTILINE)
        path, target = re.fullmatch(r"(.+)\n\+\+\+ b/(.+)\n", head).groups()
        assert path == target and hunks
        text = read(path)
        for hunk in hunks:
            sizes = [int(size or 1) for size in HUNK.match(hunk).groups()]
            lines = [line or " " for line in HUNK.sub("", hunk).splitlines()]
            assert {line[0] for line in lines} <= {" ", "+", "-"}
            old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in (" ", sign)) for sign in "-+")
            assert [old.count("\n"), new.count("\n")] == sizes, "git apply would refuse the head of this hunk"
            assert text.count(old) == 1, f"{path}: does not fit\n{hunk}"
            text = text.replace(old, new)
        changed[path] = text
    return changed


@pytest.mark.parametrize("name", DIFFS)
def test_each_change_fits_and_is_small(name):
    """A page that no longer fits the code sends its reader to look for lines that are gone."""
    assert sum(bool(re.match(r"[+-](?!\+\+ b/|-- a/)", line)) for line in DIFFS[name].splitlines()) <= MOST_LINES
    for path, text in apply(DIFFS[name], lambda path: (ROOT / path).read_text()).items():
        ast.parse(text)
        assert text != (ROOT / path).read_text() and max(map(len, text.splitlines())) <= 130


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of noise as a file of arrays, and the same as a split."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (COUNT, 32, 32, 3), np.uint8), (np.arange(COUNT) % 10).astype(np.int32)
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return path, ResidentSplit(images, labels)


@pytest.fixture(scope="module")
def train(tmp_path_factory, data):
    """Trains two steps with one of the changes, or none; returns train records and the tensors after each step."""

    def run(name, model="alexnet_mini", options=OPTIONS):
        root = tmp_path_factory.mktemp(name)
        for part in ("main.py", "alexnet", "input_pipeline", "train_lib"):
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, root / part)
        for path, text in apply(DIFFS.get(name, ""), lambda path: (root / path).read_text()).items():
            (root / path).write_text(text)
        flags = {
            "workdir": root / "run", "dataset": f"npz:{data[0]}", "train_split": "train", "validation_split": "",
            "test_split": "", "model": model, "model_options": options, "augment": "none", "pixels": "zero_one",
            "optimizer": "sgd", "momentum": 0, "learning_rate": RATE, "schedule": "constant", "warmup_epochs": 0,
            "clip_global_norm": 0, "max_steps": 2, "global_batch_size": BATCH, "log_every_steps": 1,
            "checkpoint_every_steps": 1, "keep_checkpoints": 0,
        }
        command = [sys.executable, str(root / "main.py"), *(f"--{flag}={value}" for flag, value in flags.items())]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [tf.train.load_checkpoint(str(root / "run" / "checkpoints" / f"step-0000000{step}" / "ckpt")) for step in (1, 2)]
        return records, [{key: step.get_tensor(key) for key in step.get_variable_to_shape_map()} for step in steps]

    return run


@pytest.fixture(scope="module")
def unchanged(train):
    return train("unchanged")


@pytest.fixture(scope="module")
def first_step(data):
    """The network as every run starts, its first batch scaled, the labels, and the probabilities in float64."""
    batch = next(iter(data[1].training_batches(0, 0, BATCH, ())))
    model = alexnet.build("alexnet_mini", 10, (32, 32, 3), options=OPTIONS)
    images, labels = tf.cast(batch["image"], tf.float32) / 255, batch["label"].numpy()
    logits = model(images).numpy().astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return model, images, labels, probabilities


def of_label(first_step):
    _, _, labels, probabilities = first_step
    return probabilities[np.arange(BATCH), labels]


@pytest.mark.slow
def test_the_loop_as_it_is(unchanged, first_step):
    """What the others are compared with: cross-entropy, and no more names in a record than the loop has."""
    records, _ = unchanged
    assert records[0]["loss"] == pytest.approx(-np.log(of_label(first_step)).mean(), rel=1e-5)
    names = {"kind", "step", "epoch", "loss", "accuracy", "gradient_norm", "learning_rate"}
    assert [set(record) for record in records] == [names] * 2


@pytest.mark.slow
def test_another_loss(train, unchanged, first_step):
    records, steps = train("loss")
    right = of_label(first_step)
    assert records[0]["loss"] == pytest.approx(-((1 - right) ** 2 * np.log(right)).mean(), rel=1e-5)
    assert np.any(steps[0]["model/conv1/kernel"] != unchanged[1][0]["model/conv1/kernel"])


@pytest.mark.slow
def test_a_gradient_penalty(train, unchanged, first_step):
    """Each example's slope by itself, one call of the network for each."""
    records, steps = train("penalty")
    model, images, labels, _ = first_step
    penalties = []
    for image, label in zip(images, labels, strict=True):
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = -tf.nn.log_softmax(model(image[tf.newaxis]))[0, label]
        penalties.append(np.sum(tape.gradient(loss, image).numpy() ** 2))
    expected = -np.log(of_label(first_step)).mean() + 0.01 * np.mean(penalties)
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert records[0]["loss"] > (1 + 1e-4) * unchanged[0][0]["loss"]
    assert np.any(steps[0]["model/conv1/kernel"] != unchanged[1][0]["model/conv1/kernel"])


@pytest.mark.slow
def test_a_second_optimizer_for_the_dense_layers(train, unchanged, first_step):
    """Adam's first step is a tenth of the rate for every weight that has a gradient, whatever its size."""
    _, (step, after) = train("optimizer")
    start = {f"model/{weight.path}": weight.numpy() for weight in first_step[0].weights}
    for name, before in start.items():
        moved = np.abs(step[name] - before)
        if "conv" in name:
            np.testing.assert_allclose(step[name], unchanged[1][0][name], rtol=1e-6, atol=1e-8, err_msg=name)
        else:
            assert moved.max() <= 0.1 * RATE * 1.001 and np.median(moved[moved > 0]) > 0.9 * 0.1 * RATE, name
    slots = [name for name in after if name.startswith("optimizer/adam_dense/") and name.endswith(("momentum", "velocity"))]
    assert len(slots) == 2 * sum("conv" not in name for name in start)
    assert after["optimizer/adam_dense/iteration"] == after["optimizer/sgd/iteration"] == 2


@pytest.mark.slow
def test_a_new_metric(train, unchanged, first_step):
    records, steps = train("metric")
    assert records[0]["confidence"] == pytest.approx(first_step[3].max(axis=1).mean(), rel=1e-5)
    assert all(0.1 < record["confidence"] < 1 for record in records) and len(records) == 2
    assert {name: value for name, value in records[1].items() if name != "confidence"} == unchanged[0][1]


@pytest.mark.slow
def test_another_network(train):
    records, steps = train("network", model="lenet5", options="")
    weights = {name: tensor for name, tensor in steps[0].items() if name.startswith("model/")}
    by_hand = (75 + 1) * 6 + (150 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert sum(tensor.size for tensor in weights.values()) == by_hand == 62_006
    assert f"{by_hand:,}" in DIFFS["network"]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert np.any(steps[1]["model/conv1/kernel"] != steps[0]["model/conv1/kernel"])
