"""N replicas compute what one computes: logical CPU devices, each count in a process of its own through main.py."""

import json

import numpy as np
import pytest
import tensorflow as tf

# 300 examples and batches of 24: the last evaluation batch of 70 leaves replicas with padding alone; batches span epochs.
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


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_equal_one_device_in_float64(one_replica, main, tmp_path, data_dir, replicas):
    """Clipping before the reduction, a mean per replica, equal dropout masks or another order of images would each show."""
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


def test_a_run_resumes_on_another_number_of_devices(one_replica, main, tmp_path, data_dir):
    run(main, tmp_path / "run", data_dir, "--precision=float64", "--virtual_devices=4", "--max_steps=9")
    _, tensors = run(main, tmp_path / "run", data_dir, "--precision=float64")
    for name, tensor in one_replica[1].items():
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
