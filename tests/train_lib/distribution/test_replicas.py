"""N replicas compute the same as one, on logical CPU devices. Each number of them runs main.py in a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT

# 300 examples and batches of 24, so batches span epochs. The last of 70 evaluation examples leave replicas with only padding.
COMMON = (
    "--model=alexnet_mini", "--model_options=dense_units=32", "--train_split=train[:300]", "--validation_split=train[300:370]",
    "--test_split=", "--global_batch_size=24", "--max_steps=20", "--log_every_steps=1", "--epochs=4", "--steps_per_loop=7",
    "--dropout_rate=0.5", "--augment=crop,flip", "--clip_global_norm=1", "--weight_decay=1e-3", "--learning_rate=0.005",
)


def run(main, workdir, data_dir, *arguments):
    done = main(f"--workdir={workdir}", f"--data_dir={data_dir}", *COMMON, *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    name = (workdir / "checkpoints" / "latest").read_text().strip()
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name / "ckpt"))
    return lines, {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_equal_one_device_in_float64(one_replica, main, tmp_path, data_dir, replicas):
    """Clipping before the reduction, a mean per replica, equal dropout masks or another order of images would all show."""
    lines, tensors = run(main, tmp_path / "run", data_dir, "--precision=float64", f"--virtual_devices={replicas}")
    reference_lines, reference = one_replica
    assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in reference_lines]
    for line, expected in zip(lines, reference_lines, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        assert line["accuracy"] == expected["accuracy"]
        assert line.get("examples") == expected.get("examples")
    assert tensors.keys() == reference.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, reference[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(one_replica, main, tmp_path, data_dir):
    run(main, tmp_path / "run", data_dir, "--precision=float64", "--virtual_devices=4", "--max_steps=9")
    _, tensors = run(main, tmp_path / "run", data_dir, "--precision=float64")
    for name, tensor in one_replica[1].items():
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)


# main.py that also writes a hash of the augmented pixels and the label of every example it draws, with its place in the run.
NOTING = """
import hashlib, sys
import main
from train_lib import config as config_lib
main.prepare_environment(config_lib.ExperimentConfig(), None)
from input_pipeline.splits import resident
make, notes = resident.map_examples, open(sys.argv[1], "a")
def noting(read, specs, *arguments, **more):
    def noted(examples):
        labels, *others, images = arrays = read(examples)
        digests = [hashlib.sha256(image.tobytes() + bytes([label])).hexdigest() for image, label in zip(images, labels)]
        if not others:
            notes.write("".join(f"{place} {digest}\\n" for place, digest in zip(examples, digests)))
            notes.flush()
        return arrays
    return make(noted, specs, *arguments, **more)
resident.map_examples = noting
main.app.run(main.main, argv=["main.py", *sys.argv[2:]], flags_parser=main.parse_flags)
"""


def run_noting(workdir, data_dir, *arguments):
    """`run`, and {place in the run: hash of the example}."""
    def main(*flags):
        command = [sys.executable, "-c", NOTING, workdir.with_suffix(".txt"), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)

    lines, tensors = run(main, workdir, data_dir, *arguments)
    pairs = [line.split() for line in workdir.with_suffix(".txt").read_text().splitlines()]
    return lines, tensors, {int(place): digest for place, digest in pairs}


@pytest.mark.slow
def test_one_checkpoint_resumes_on_1_2_and_4_devices(tmp_path, data_dir, capsys):
    """The same images, bit for bit, and losses and weights within 1e-9. Images that were only drawn ahead do not count."""
    whole_lines, whole, whole_images = run_noting(tmp_path / "whole", data_dir, "--precision=float64")
    run_noting(tmp_path / "cut", data_dir, "--precision=float64", "--max_steps=9")
    worst = {}
    for devices in (1, 2, 4):
        shutil.copytree(tmp_path / "cut", tmp_path / str(devices))
        lines, tensors, images = run_noting(
            tmp_path / str(devices), data_dir, "--precision=float64", f"--virtual_devices={devices}")
        places = range(9 * 24, 20 * 24)
        assert {place: images[place] for place in places} == {place: whole_images[place] for place in places}
        assert min(images) == 9 * 24
        lines = [line for line in lines if (line["kind"], line["step"]) != ("validation", 9)]  # it ended there, once
        assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in whole_lines]
        differences = [abs(line["loss"] / other["loss"] - 1) for line, other in zip(lines, whole_lines, strict=True)]
        worst[devices] = max(differences)
        assert worst[devices] < 1e-9
        for name, tensor in whole.items():
            np.testing.assert_allclose(tensors[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
    with capsys.disabled():
        print(f"largest relative difference of a loss: {worst}")
