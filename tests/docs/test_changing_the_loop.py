"""The changes of docs/changing-the-loop.md: each is made in a copy of the repository and does what the page says."""

import ast
import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

import alexnet
from input_pipeline.splits.resident import ResidentSplit

PAGE = (ROOT / "docs" / "changing-the-loop.md").read_text()
SECTIONS = re.findall(r"<!-- change: (\w+) -->\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)
# {change: [(file, class or "", code)]}
CHANGES = {name: re.findall(r"```python\n# (\S+?)(?:, in (\w+))?\n(.*?)```", text, re.DOTALL) for name, text in SECTIONS}
MOST_LINES, MOST_LINES_OF_A_WRITER = 40, 15
OPTIONS, RATE, COUNT, BATCH = "width=0.2,dense_units=32", 0.01, 24, 8


def with_block(text, owner, code):
    """A file's text with a block appended, or appended to the body of a class."""
    if not owner:
        return f"{text}\n\n{code}"
    node, = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == owner)
    lines = text.splitlines(keepends=True)
    return "".join([*lines[: node.end_lineno], "\n", textwrap.indent(code, "    "), *lines[node.end_lineno :]])


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_small_and_names_what_is_there(name):
    """A page whose files and classes are gone sends its reader on a search."""
    assert CHANGES[name]
    lines = [line for _, _, code in CHANGES[name] for line in code.splitlines() if line.strip()]
    assert len(lines) <= (MOST_LINES_OF_A_WRITER if name == "writer" else MOST_LINES)
    for path, owner, code in CHANGES[name]:
        ast.parse(with_block((ROOT / path).read_text(), owner, code))


def test_every_section_has_a_change_that_is_tested_below():
    assert len(CHANGES) == len(re.findall(r"^## \d+ ", PAGE, re.MULTILINE))
    tested = set(re.findall(r'^    .*train\("(\w+)"', pathlib.Path(__file__).read_text(), re.MULTILINE))
    assert tested >= CHANGES.keys()


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
    """Trains two steps with one of the changes, or none; returns all records and the tensors after each step."""

    def run(name, model="alexnet_mini", options=OPTIONS, extra_files=(), **more):
        root = tmp_path_factory.mktemp(name)
        for part in ("main.py", "alexnet", "input_pipeline", "train_lib"):
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, root / part)
        for path, owner, code in CHANGES.get(name, ()):
            (root / path).write_text(with_block((root / path).read_text(), owner, code))
        for path, text in extra_files:
            (root / path).write_text(text)
        flags = {
            "workdir": root / "run", "dataset": f"npz:{data[0]}", "train_split": "train", "validation_split": "",
            "test_split": "", "model": model, "model_options": options, "augment": "none", "pixels": "zero_one",
            "optimizer": "sgd", "momentum": 0, "learning_rate": RATE, "schedule": "constant", "warmup_epochs": 0,
            "clip_global_norm": 0, "max_steps": 2, "global_batch_size": BATCH, "log_every_steps": 1,
            "checkpoint_every_steps": 1, "keep_checkpoints": 0, **more,
        }
        if flags["optimizer"] != "sgd":
            del flags["momentum"]  # no other update rule has it
        command = [sys.executable, str(root / "main.py"), *(f"--{flag}={value}" for flag, value in flags.items())]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [tf.train.load_checkpoint(str(root / "run" / "checkpoints" / f"step-0000000{step}" / "ckpt")) for step in (1, 2)]
        run.folders[name] = root
        return records, [{key: step.get_tensor(key) for key in step.get_variable_to_shape_map()} for step in steps]

    run.folders = {}
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
    records, steps = train("focal")
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
    assert f"{by_hand:,}" in CHANGES["network"][0][2]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert np.any(steps[1]["model/conv1/kernel"] != steps[0]["model/conv1/kernel"])


def gradients_of(model, loss_of, weights=None):
    """The gradients of loss_of(logits function) at the present weights, by plain TensorFlow."""
    with tf.GradientTape() as tape:
        loss = loss_of()
    return loss, tape.gradient(loss, weights or model.trainable_variables)


def mean_cross_entropy(model, images, labels):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images)))


def fresh_network():
    return alexnet.build("alexnet_mini", 10, (32, 32, 3), options=OPTIONS)


def assert_weights(model, tensors, rtol=2e-5, atol=2e-7):
    for weight in model.trainable_variables:
        np.testing.assert_allclose(tensors[f"model/{weight.path}"], weight.numpy(), rtol=rtol, atol=atol, err_msg=weight.path)


@pytest.mark.slow
def test_distillation(train, unchanged, first_step):
    """The teacher is the unchanged run's network after its best step."""
    teacher_run = train.folders["unchanged"] / "run"
    records, _ = train("distillation", options="width=0.1,dense_units=16", teacher=teacher_run)
    _, images, labels, _ = first_step
    best = int((teacher_run / "checkpoints" / "best").read_text().strip().removeprefix("step-"))
    teacher, student = fresh_network(), alexnet.build("alexnet_mini", 10, (32, 32, 3), options="width=0.1,dense_units=16")
    for weight in teacher.weights:
        weight.assign(unchanged[1][best - 1][f"model/{weight.path}"])
    logits, wanted = student(images).numpy().astype(np.float64), np.exp(teacher(images).numpy().astype(np.float64) / 4)
    wanted /= wanted.sum(axis=1, keepdims=True)
    log_cold = logits / 4 - np.log(np.exp(logits / 4).sum(axis=1, keepdims=True))
    log_warm = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = (-log_warm[np.arange(BATCH), labels] - 16 * (wanted * log_cold).sum(axis=1)).mean() / 2
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_sharpness_aware_minimization(train, first_step):
    records, steps = train("sam")
    _, images, labels, _ = first_step
    model = fresh_network()
    start = [weight.numpy() for weight in model.trainable_variables]
    _, climb = gradients_of(model, lambda: mean_cross_entropy(model, images, labels))
    norm = tf.linalg.global_norm(climb)
    for weight, gradient in zip(model.trainable_variables, climb, strict=True):
        weight.assign_add(0.05 * gradient / norm)
    loss, descent = gradients_of(model, lambda: mean_cross_entropy(model, images, labels))
    assert records[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    for weight, value, gradient in zip(model.trainable_variables, start, descent, strict=True):
        weight.assign(value - RATE * gradient)
    assert_weights(model, steps[0])


@pytest.mark.slow
def test_lamb(train, first_step):
    """The first step by hand: both moments are those of one gradient, and each weight moves by its own norm times the rate."""
    _, steps = train("lamb", optimizer="lamb", weight_decay=0.1)
    _, images, labels, _ = first_step
    model = fresh_network()
    _, gradients = gradients_of(model, lambda: mean_cross_entropy(model, images, labels))
    for weight, gradient in zip(model.trainable_variables, gradients, strict=True):
        start, gradient = weight.numpy().astype(np.float64), gradient.numpy().astype(np.float64)
        start *= 1 - RATE * 0.1 if start.ndim > 1 else 1  # weight decay, decoupled
        direction = gradient / (np.abs(gradient) + 1e-7)
        length = np.linalg.norm(start)
        trust = length / np.linalg.norm(direction) if length > 0 and np.linalg.norm(direction) > 0 else 1.0
        np.testing.assert_allclose(
            steps[0][f"model/{weight.path}"], start - RATE * trust * direction, rtol=1e-3, atol=2e-5, err_msg=weight.path)


@pytest.mark.slow
def test_frozen_layers_and_layer_wise_rates(train, unchanged, first_step):
    _, steps = train("freezing")
    layers = ["logits", "dense7", "dense6", "conv5", "conv4", "conv3"]
    for weight in first_step[0].trainable_variables:
        name, start = f"model/{weight.path}", weight.numpy()
        layer = weight.path.split("/")[0]
        scale = 0.8 ** layers.index(layer) if layer in layers else 0.0
        moved = scale * (unchanged[1][0][name].astype(np.float64) - start)
        np.testing.assert_allclose(steps[0][name] - start, moved, rtol=1e-2, atol=1e-7, err_msg=name)
        assert (steps[0][name] == start).all() == (scale == 0), name
    assert not [name for name in steps[0] if "optimizer" in name and "conv1" in name]


@pytest.mark.slow
def test_the_gradient_noise_scale(train, first_step):
    """Against the gradients of the two halves of the batch."""
    records, _ = train("noise", accumulate_steps=2)
    _, images, labels, _ = first_step
    model, half = fresh_network(), BATCH // 2
    parts = [gradients_of(model, lambda rows=rows: mean_cross_entropy(model, images[rows], labels[rows]))[1]
             for rows in (slice(0, half), slice(half, BATCH))]
    small = np.mean([float(tf.linalg.global_norm(part)) ** 2 for part in parts])
    large = float(tf.linalg.global_norm([(a + b) / 2 for a, b in zip(*parts, strict=True)])) ** 2
    signal = (BATCH * large - half * small) / (BATCH - half)
    noise = (small - large) / (1 / half - 1 / BATCH)
    first = records[0]
    assert (first["small_batch"], first["large_batch"]) == (half, BATCH)
    assert first["small_norm"] == pytest.approx(small, rel=1e-4) and first["large_norm"] == pytest.approx(large, rel=1e-4)
    assert first["noise_scale"] == pytest.approx(noise / signal, rel=1e-2)


@pytest.mark.slow
def test_grey_images(train, unchanged):
    """The share that is grey, by counting; the same examples in a part of the batch."""
    records, _ = train("grey", augment="grey")
    assert records[0]["loss"] != unchanged[0][0]["loss"]
    command = [sys.executable, "-c", """
import json
import numpy as np
import tensorflow as tf
from train_lib.augment import augment, chosen_for_grey
from train_lib.config import from_values
from train_lib.state import PixelScaling
whole, part = chosen_for_grey(7, 3, 0, 4000).numpy(), chosen_for_grey(7, 3, 1000, 50).numpy()
config = from_values({"augment": "grey", "seed": 7})
images = np.random.default_rng(0).normal(size=(4000, 2, 2, 3))
result, _ = augment(config, PixelScaling(np.zeros(3), np.ones(3)), tf.constant(images), tf.zeros([4000], tf.int32), 3, 0)
grey = (result.numpy().std(axis=-1) < 1e-12).all(axis=(1, 2))
same, applied = (whole[1000:1050] == part).all(), (grey == whole).all()
print(json.dumps({"same": bool(same), "share": float(whole.mean()), "applied": bool(applied)}))
"""]
    done = subprocess.run(command, cwd=train.folders["grey"], capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["applied"] and abs(found["share"] - 0.2) < 4 * np.sqrt(0.16 / 4000)


@pytest.mark.slow
def test_group_normalization(train):
    """Every example by itself: one replica and two compute the same, and the offset learns."""
    losses, moved = [], []
    for replicas in (1, 2):
        records, steps = train("groupnorm", virtual_devices=replicas)
        losses.append([record["loss"] for record in records])
        moved.append(steps[0]["model/conv1_norm/beta"])
        assert not any("conv1/bias" in name for name in steps[0])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(*moved, rtol=1e-3, atol=1e-7)
    assert np.abs(moved[0]).max() > 0


# A service that writes what it is sent into a file.
WANDB = """
import json

class Run:
    def __init__(self, file):
        self.file = file
    def log(self, values):
        self.file.write(json.dumps(values) + "\\n")
    def finish(self):
        self.file.close()

def init(project, id, resume, config):
    file = open("sent.jsonl", "w")
    file.write(json.dumps({"id": id, "resume": resume, "learning_rate": config["learning_rate"]}) + "\\n")
    return Run(file)
"""


@pytest.mark.slow
def test_a_metrics_writer(train, unchanged):
    records, _ = train("writer", extra_files=[("wandb.py", WANDB)])
    assert records == unchanged[0]
    first, *sent = [json.loads(line) for line in (train.folders["writer"] / "sent.jsonl").read_text().splitlines()]
    assert first == {"id": "run", "resume": "allow", "learning_rate": RATE}
    expected = [{f"{record['kind']}/{name}": value for name, value in record.items() if name != "kind"} for record in records]
    assert sent == expected and len(sent) == 2
