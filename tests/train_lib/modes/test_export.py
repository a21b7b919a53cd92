"""An export computes the predictions of its checkpoint, also in other processes. If it does not, it is not kept."""

import csv
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from drivers import make_config, mirrored, run_mode, save_run
from helpers import ROOT
from PIL import Image, ImageOps
from source_files import encoded

from input_pipeline.common.errors import SettingError, UnusableError
from train_lib.modes.classifier import Classifier
from train_lib.modes.export import saved_model as export_room
from train_lib.modes.export.child import largest_difference
from train_lib.modes.export.saved_model import export
from train_lib.modes.predict import predict
from train_lib.records.workdir import Workdir

if tf.config.list_physical_devices("GPU"):
    pytest.skip("export hides the GPUs, which a process that has used them cannot do", allow_module_level=True)


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """(folder, workdir, images): an export of the small run, checked in a process that ends if it imports one of our modules."""
    workdir, images = small_run
    folder = tmp_path_factory.mktemp("exported")
    for package in ("alexnet", "input_pipeline", "train_lib", "main"):
        (folder / "traps").mkdir(exist_ok=True)
        (folder / "traps" / f"{package}.py").write_text("raise SystemExit('a module of the project was imported')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "traps"))
        assert run_mode(export, f"--workdir={workdir}", f"--export_dir={folder / 'new' / 'export'}") == 0
    return folder / "new" / "export", workdir, images


def predicted(workdir, images):
    """{path: {class: probability}} of predictions.csv."""
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={images}") == 0
    with open(workdir / "predictions.csv", newline="") as file:
        return {row["path"]: {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in range(1, 6)}
                for row in csv.DictReader(file)}


def test_the_saved_model_agrees_with_predict(exported):
    """For the bytes of files and for their pixels. The run has averaged weights and was read as a stream."""
    folder, workdir, images = exported
    rows = dict(list(predicted(workdir, images).items())[::10])
    served = tf.saved_model.load(folder / "saved_model").signatures
    of_files = served["encoded"](encoded=tf.constant([pathlib.Path(path).read_bytes() for path in rows]))
    of_pixels = served["serving_default"](images=tf.constant(np.stack([Image.open(path) for path in rows])))
    names = json.loads((folder / "export.json").read_text())["class_names"]
    for answer in (of_files, of_pixels):
        assert {name: value.dtype for name, value in answer.items()} == {
            "probabilities": tf.float32, "top_classes": tf.string, "top_probabilities": tf.float32}
        for index, ranked in enumerate(rows.values()):
            top = [name.decode() for name in answer["top_classes"][index].numpy()]
            assert top == list(ranked)
            np.testing.assert_allclose(answer["top_probabilities"][index], list(ranked.values()), atol=1e-6)
            whole = answer["probabilities"][index].numpy()
            np.testing.assert_allclose([whole[names.index(name)] for name in ranked], list(ranked.values()), atol=1e-6)


def test_files_of_any_size_and_kind_in_one_request(exported):
    folder, _, _ = exported
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    served = tf.saved_model.load(folder / "saved_model").signatures
    grey = image[..., :1].repeat(3, axis=2)
    same = [encoded(image), encoded(image, "BMP"), encoded(image, "WEBP", lossless=True)]
    files = [*same, encoded(grey[..., 0]), encoded(image[:7])]
    answer = served["encoded"](encoded=tf.constant(files))["probabilities"].numpy()
    of_pixels = served["serving_default"](images=tf.constant(np.stack([image, grey])))["probabilities"].numpy()
    np.testing.assert_allclose(answer[:4], of_pixels[[0, 0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-6)


def test_sideways_photos_get_the_answer_of_upright_ones(exported):
    """TensorFlow's operations alone must find the EXIF."""
    folder, _, _ = exported
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    served = tf.saved_model.load(folder / "saved_model").signatures["encoded"]
    files, upright = [encoded(image)], [encoded(image)]
    for kind in ("PNG", "WEBP", "JPEG"):
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = turn
            files.append(encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
            upright.append(encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(files[-1])).convert("RGB"))))
    answer, expected = (served(encoded=tf.constant(part))["probabilities"].numpy() for part in (files, upright))
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert np.abs(expected[2:9] - expected[0]).max(axis=1).min() > 1e-3  # the network distinguishes the turns


@pytest.mark.parametrize("order", ["b", "bb", "gb", "bg", "bbgbgbbbgg", "g" * 40 + "b"])
def test_a_file_that_cannot_be_decoded_has_a_row_of_zeros(exported, order):
    """All other rows are those of a request without it."""
    folder, _, images = exported
    served = tf.saved_model.load(folder / "saved_model").signatures["encoded"]
    good = [path.read_bytes() for path in sorted(images.rglob("*.png"))[: order.count("g")]]
    long = encoded(np.zeros((1, 400_000, 3), np.uint8))  # cannot be scaled
    bad = itertools.cycle([b"", b"no image", encoded(np.zeros((9, 9, 3), np.uint8))[:50], long])
    rest = iter(good)
    answer = served(encoded=tf.constant([next(rest) if kind == "g" else next(bad) for kind in order]))
    is_good = np.array([kind == "g" for kind in order])
    assert answer["probabilities"].shape == (len(order), 10) and answer["top_classes"].shape == (len(order), 5)
    assert not answer["probabilities"].numpy()[~is_good].any() and not answer["top_probabilities"].numpy()[~is_good].any()
    assert (answer["top_classes"].numpy()[~is_good] == b"").all()
    if good:
        for name, expected in served(encoded=tf.constant(good)).items():
            if expected.dtype == tf.string:
                assert (answer[name].numpy()[is_good] == expected.numpy()).all() and (expected.numpy() != b"").all()
            else:
                np.testing.assert_allclose(answer[name].numpy()[is_good], expected, atol=1e-6)


def test_an_empty_request_has_an_empty_answer(exported):
    folder, _, _ = exported
    served = tf.saved_model.load(folder / "saved_model").signatures
    answers = [served["encoded"](encoded=tf.constant([], tf.string))]
    answers += [served["serving_default"](images=tf.zeros(shape, tf.uint8)) for shape in ((0, 40, 60, 3), (0, 0, 0, 3))]
    for answer in answers:
        assert {name: (value.dtype, tuple(value.shape)) for name, value in answer.items()} == {
            "probabilities": (tf.float32, (0, 10)), "top_classes": (tf.string, (0, 5)), "top_probabilities": (tf.float32, (0, 5))}


def test_the_keras_file_opens(exported):
    """Keras loads it if alexnet.layers is imported. It turns pixels of the network's size into probabilities."""
    folder, workdir, images = exported
    rows = dict(list(predicted(workdir, images).items())[::30])
    model = keras.models.load_model(folder / "model.keras")
    # A run read as a stream scales images to 28 + 28 // 7 = 32 pixels, which these have already, and takes the middle 28.
    pixels = np.stack([np.asarray(Image.open(path))[2:30, 2:30] for path in rows])
    names = json.loads((folder / "export.json").read_text())["class_names"]
    for probabilities, ranked in zip(model.predict(pixels, verbose=0), rows.values(), strict=True):
        np.testing.assert_allclose([probabilities[names.index(name)] for name in ranked], list(ranked.values()), atol=1e-6)


def test_the_averages_are_used(exported):
    """The small run has --ema_decay. Its checkpoint contains weights and averages, and they differ."""
    _, workdir, _ = exported
    config = make_config(model_options="width=0.25,dense_units=32,dense7_relu=true", image_size=28, pixels="minus_one_one")
    classifier = Classifier(config, Workdir(workdir), mirrored(1))
    tensors = classifier.checkpoint.tensors()
    kernel = classifier.state.weights()["model/conv1/kernel"].numpy()
    np.testing.assert_array_equal(kernel, tensors["ema/conv1/kernel"])
    assert np.abs(kernel - tensors["model/conv1/kernel"]).max() > 1e-4


def test_the_folder_contains_the_documented_files(exported):
    folder, _, _ = exported
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "model.keras", "saved_model"]
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    about = json.loads((folder / "export.json").read_text())
    assert about["model"] == "alexnet_mini" and about["image_shape"] == [28, 28, 3] and len(about["class_names"]) == 10


# Exports that are not kept.


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A workdir with an untrained network. The check runs in this process."""
    monkeypatch.setattr(export_room, "_difference_elsewhere", largest_difference)  # no new process, which takes seconds
    return save_run(tmp_path / "run", make_config(model_options="width=0.1,dense_units=16"), "abc")


def assert_nothing_is_left(workdir):
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "config.json", "run.flags"]


def spoil_signature(monkeypatch):
    answer = export_room.Served._answer
    monkeypatch.setattr(export_room.Served, "_answer", lambda self, views: answer(self, views[:, :, ::-1]))


def spoil_files(monkeypatch):
    view_of = export_room.Served._view_of

    def upside_down(self, row, encoded):
        row, view = view_of(self, row, encoded)
        return row, view[::-1]

    monkeypatch.setattr(export_room.Served, "_view_of", upside_down)


def spoil_names(monkeypatch):
    answer = export_room.Served._answer

    def renamed(self, views):
        values = answer(self, views)
        return {**values, "top_classes": tf.roll(values["top_classes"], 1, axis=1)}

    monkeypatch.setattr(export_room.Served, "_answer", renamed)


def spoil_keras(monkeypatch):
    made = export_room.keras_model

    def changed(classifier):
        model = made(classifier)
        model.layers[1].layers[-1].bias.assign([0.0, 0.1, 0.0])
        return model

    monkeypatch.setattr(export_room, "keras_model", changed)


@pytest.mark.parametrize("spoil", [spoil_files, spoil_names, *(pytest.param(spoil, marks=pytest.mark.slow) for spoil in (
    spoil_signature, spoil_keras))])
def test_other_predictions_are_noticed(quick, monkeypatch, spoil):
    """Mirrored images, files upside down, names in another order and a bias of 0.1 must all fail the check."""
    spoil(monkeypatch)
    with pytest.raises(UnusableError, match="probabilities up to .* off") as error:
        run_mode(export, f"--workdir={quick}")
    assert error.value.exit_code == 3
    assert_nothing_is_left(quick)


def test_an_interrupted_export_leaves_nothing(quick, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_room, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_mode(export, f"--workdir={quick}")
    assert_nothing_is_left(quick)


@pytest.mark.slow
def test_a_process_that_cannot_load_it(tmp_path):
    with pytest.raises(UnusableError, match="a new process cannot use the exported model"):
        export_room._difference_elsewhere(tmp_path, {})


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_target_that_exists_is_refused(quick, tmp_path, kind):
    target = tmp_path / "there"
    {"folder": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to("nowhere")}[kind]()
    before = os.lstat(target)
    with pytest.raises(SettingError, match=f"--export_dir={target}: is there already") as error:
        run_mode(export, f"--workdir={quick}", f"--export_dir={target}")
    assert error.value.exit_code == 2 and os.lstat(target) == before


def test_a_target_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnusableError, match="--export_dir=.*cannot be written"):
        run_mode(export, f"--workdir={quick}", f"--export_dir={tmp_path / 'file' / 'export'}")


def test_a_killed_export_does_not_block_the_next_one(quick):
    (quick / ".export.exporting" / "saved_model").mkdir(parents=True)
    assert run_mode(export, f"--workdir={quick}") == 0
    assert sorted(path.name for path in quick.iterdir()) == ["checkpoints", "config.json", "export", "run.flags"]


# Networks and settings.

SMALL = {
    "bfloat16": ((32, 32, 3), {"precision": "bfloat16", "model_options": "lrn=true,width=0.1,dense_units=32"}),
}
MORE = {
    "not square": ((24, 40, 3), {}),
    "ten views": ((32, 32, 3), {"test_crops": 10, "input": "stream", "augment": "crop"}),
    "float16": ((32, 32, 3), {"precision": "float16"}),
    "float64": ((32, 32, 3), {"precision": "float64"}),
    "sequential": ((32, 32, 3), {"model": "alexnet_tower_sequential", "model_options": "dense_units=16,lrn=true"}),
    "the paper's": ((224, 224, 3), {"model": "alexnet", "model_options": ""}),
    "its towers in bfloat16": ((224, 224, 3), {"model": "alexnet", "model_options": "dense_units=64", "precision": "bfloat16"}),
    "batch normalization": ((32, 32, 3), {"model": "ResNet50", "model_options": "", "dropout_rate": None}),
}


def export_network(tmp_path, image_shape, values):
    workdir = save_run(tmp_path / "run", make_config(**{"augment": "none"} | values), "abcdefg", image_shape=image_shape)
    assert run_mode(export, f"--workdir={workdir}") == 0
    served = tf.saved_model.load(workdir / "export" / "saved_model").signatures["serving_default"]
    answer = served(images=tf.zeros((1, 50, 60, 3), tf.uint8))
    assert answer["probabilities"].dtype == answer["top_probabilities"].dtype == tf.float32
    assert answer["top_classes"].shape == (1, 5)


@pytest.mark.parametrize("name", SMALL)
def test_networks_and_settings(tmp_path, monkeypatch, name):
    """The export itself compares with the checkpoint, here in one process."""
    monkeypatch.setattr(export_room, "_difference_elsewhere", largest_difference)  # no new process, which takes seconds
    export_network(tmp_path, *SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_networks_and_settings(tmp_path, name):
    export_network(tmp_path, *MORE[name])


@pytest.mark.slow
def test_a_keras_file_loads_by_the_documented_recipe(tmp_path):
    """In a process that imports only `alexnet.layers` of this project."""
    workdir = save_run(tmp_path / "run", make_config(model="resnet20", model_options=""), "abc")
    assert run_mode(export, f"--workdir={workdir}") == 0
    code = f"import keras, alexnet.layers; keras.models.load_model({str(workdir / 'export' / 'model.keras')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
