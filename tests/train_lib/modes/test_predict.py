"""Prediction of image files: the same answers as evaluation, for files of any name, even if some of them are bad."""

import csv
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from drivers import make_config, mirrored, run_mode, save_run
from PIL import Image, ImageOps
from source_files import encoded

import alexnet
from input_pipeline import splits
from input_pipeline.common.errors import SettingError, UnusableError
from train_lib.cli.inputs import list_images, printable
from train_lib.evaluate import evaluate
from train_lib.modes import classifier as classifier_room
from train_lib.modes import predict as predict_room
from train_lib.modes.classifier import Classifier
from train_lib.modes.predict import predict
from train_lib.records.workdir import Workdir


def rows_of(workdir):
    """predictions.csv as a list of dicts, read by Python's reader with its default settings."""
    with open(workdir / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def write(folder, files):
    """Writes {name as bytes or str: content}."""
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


# The same answers as --mode=evaluate.


@pytest.mark.parametrize("how", ["--input=auto", "--input=stream", "--input=memory", "--input=stream --test_crops=10"])
def test_files_of_a_split_get_the_predictions_of_evaluation(small_run, monkeypatch, how):
    """Loss, confusion matrix and accuracies for the images of the split as PNG files. The data set itself is not available."""
    workdir, images = small_run
    monkeypatch.setattr(classifier_room, "TOP", 10)  # the probabilities of all classes, for the loss
    monkeypatch.setattr(splits, "MEMORY_SHARE", 0.0)  # as in training, so that --input=auto takes a stream
    assert run_mode(evaluate, f"--workdir={workdir}", *how.split()) == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    monkeypatch.setattr(splits, "MEMORY_SHARE", 0.5)
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={images}", "--data_dir=/nowhere", *how.split()) == 0
    rows, names = rows_of(workdir), report["class_names"]
    labels = [pathlib.Path(row["path"]).parent.name for row in rows]
    confusion = np.zeros((10, 10), int)
    for row, label in zip(rows, labels, strict=True):
        confusion[names.index(label), names.index(row["class_1"])] += 1
    assert len(rows) == 150 and confusion.tolist() == report["confusion_matrix"]
    assert np.mean([row["class_1"] == label for row, label in zip(rows, labels, strict=True)]) == report["accuracy"]
    of_label = [[float(row[f"probability_{rank}"]) for rank in range(1, 11) if row[f"class_{rank}"] == label] for row, label in
                zip(rows, labels, strict=True)]
    np.testing.assert_allclose(report["loss"], -np.log(of_label).mean(), rtol=1e-6)
    in_top_5 = [label in [row[f"class_{rank}"] for rank in range(1, 6)] for row, label in zip(rows, labels, strict=True)]
    assert np.mean(in_top_5) == report["top_5_accuracy"]


def test_a_stream_and_memory_use_different_pixels(small_run):
    """Otherwise the test above would not notice which of the two was used."""
    workdir, images = small_run
    rows = []
    for how in ("--input=auto", "--input=memory"):
        run_mode(predict, f"--workdir={workdir}", f"--inputs={images}", how)
        rows.append([row["probability_1"] for row in rows_of(workdir)])
    assert rows[0] != rows[1]


def test_probabilities_are_those_of_keras(tmp_path):
    """Compared with NumPy's softmax of logits that Keras computes, for an image that is larger and not square."""
    workdir = save_run(tmp_path / "run", make_config(), "abcdefg")
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    write(tmp_path, {"image.png": encoded(image)})
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={tmp_path / 'image.png'}") == 0
    small = np.round(tf.image.resize(image, (32, 53), antialias=True))[:, 10:42]  # 80 * 32 / 48 = 53.3
    logits = alexnet.build("alexnet_mini", 7, (32, 32, 3), options="dense_units=64")(small[None] / 255)[0].numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum()
    (row,) = rows_of(workdir)
    best = np.argsort(-probabilities)[:5]
    assert [row[f"class_{rank}"] for rank in range(1, 6)] == ["abcdefg"[label] for label in best]
    np.testing.assert_allclose([float(row[f"probability_{rank}"]) for rank in range(1, 6)], probabilities[best], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [3, 4])
def test_several_replicas_give_what_one_gives(small_run, batch_size):
    """One batch size that two does not divide, and one with a batch that is not full."""
    workdir = Workdir(small_run[0])
    views = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    config = make_config(model_options="width=0.25,dense_units=32,dense7_relu=true", image_size=28, pixels="minus_one_one")
    one, two = (Classifier(config, workdir, mirrored(count)).logits(views, batch_size) for count in (1, 2))
    assert one.shape == two.shape == (3, 10)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_fewer_than_five_classes(tmp_path, capsys):
    """All classes are listed; probabilities add up to 1."""
    workdir = save_run(tmp_path / "run", make_config(), ["cat", "dog, brown", 'owl "x"'])
    write(tmp_path, {"image.png": encoded(np.zeros((5, 9, 3), np.uint8))})
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={tmp_path / 'image.png'}") == 0
    (row,) = rows_of(workdir)
    assert list(row) == ["path", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"]
    assert {row[f"class_{rank}"] for rank in (1, 2, 3)} == {"cat", "dog, brown", 'owl "x"'}
    assert sum(float(row[f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1)
    assert "1 of 1 images" in capsys.readouterr().out


# Files of any format and name.

STAR = np.random.default_rng(1).integers(0, 256, (40, 28, 3), np.uint8)
GREY = STAR[..., 0]
SAME = {  # commas, quotes, line breaks; lossless formats
    b"plain.png": encoded(STAR), b"a,b.png": encoded(STAR), b'say "hi".png': encoded(STAR), b"new\nline.png": encoded(STAR),
    b"return\rx.png": encoded(STAR), b"latin-\xe9\xff.png": encoded(STAR), "größe 日本.png".encode(): encoded(STAR),
    b"=1+1.png": encoded(STAR), b" space .PNG": encoded(STAR), b"esc\x1b[31m.png": encoded(STAR), b"x[1].png": encoded(STAR),
    b"kind.bmp": encoded(STAR, "BMP"), b"kind.webp": encoded(STAR, "WEBP", lossless=True), b"below/sub/kind.png": encoded(STAR),
    b"alpha.png": encoded(np.dstack([STAR, STAR[..., :1]])),
    b"alpha.webp": encoded(np.dstack([STAR, STAR[..., :1]]), "WEBP", lossless=True, exact=True),
    b"moving.webp": encoded(STAR, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - STAR)]),
}
GREYS = {
    b"grey.png": encoded(GREY), b"three.png": encoded(np.dstack([GREY] * 3)),
    b"sixteen.png": encoded(GREY.astype(np.uint16) * 257),
    b"first.gif": encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
    b"palette.png": encoded(Image.fromarray(GREY).convert("P")),
}
NOT_TAKEN = {b".dot.png": b"x", b".folder/x.png": b"x", b"notes.txt": b"x"}
BAD = {
    b"bad/no\nimage.png": (b"no image", "damaged"), b"bad/empty.jpg": (b"", "empty"),
    b"bad/cut.png": (encoded(STAR)[:900], "cut off"), b"bad/cut.jpg": (encoded(STAR, "JPEG")[:900], "cut off"),
    b"bad/tiff.png": (encoded(STAR, "TIFF"), "no PNG"),
    b"bad/narrow.png": (encoded(np.zeros((1, 400_000, 3), np.uint8)), "narrow"),
}


def test_any_kind_and_name_of_file(small_run, tmp_path, capfd):
    workdir, _ = small_run
    write(tmp_path, SAME | GREYS | NOT_TAKEN | {name: content for name, (content, _) in BAD.items()})
    os.symlink("nowhere", tmp_path / "bad" / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={tmp_path}") == 3
    rows = {os.path.relpath(os.fsencode(row.pop("path")), os.fsencode(tmp_path)): tuple(row.values()) for row in rows_of(workdir)}
    assert rows.keys() == SAME.keys() | GREYS.keys()
    assert len({rows[name] for name in SAME}) == 1 and len({rows[name] for name in GREYS}) == 1
    shown = capfd.readouterr()
    skipped = [line for line in shown.err.splitlines() if line.endswith("; skipped")]
    assert len(skipped) == len(BAD) + 1
    for name, (_, reason) in [*BAD.items(), (b"bad/gone.png", (None, "No such file"))]:
        (line,) = (line for line in skipped if printable(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))) in line)
        assert reason in line
    assert "\x1b" not in shown.out and "22 of 29 images" in shown.out and "größe 日本.png" in shown.out


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_sideways_photos_are_turned_upright(small_run, tmp_path, kind):
    """Each orientation gets the prediction of the image that Pillow turns upright."""
    workdir, _ = small_run
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        photo = encoded(STAR, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(photo)).convert("RGB")))
        write(tmp_path, {f"{turn}-photo.png": photo, f"{turn}-upright.png": upright})
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={tmp_path}") == 0
    rows = [{row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in range(1, 6)} for row in rows_of(workdir)]
    assert len(rows) == 16 and len({str(row) for row in rows[1::2]}) == 8  # the network distinguishes the turns
    assert rows[::2] == rows[1::2]


def test_a_bad_file_at_either_end_and_a_whole_bad_batch(tmp_path):
    """The positions of bad files are found between those of the good ones."""
    workdir = save_run(tmp_path / "run", make_config(), "abc")
    good, order = encoded(STAR), "bggbbbbbggbgb"
    write(tmp_path, {f"images/{index:02}.png": good if kind == "g" else b"bad" for index, kind in enumerate(order)})
    classifier = Classifier(make_config(), Workdir(workdir), mirrored(1))
    paths = list_images(str(tmp_path / "images"))
    answers = list(predict_room.classify(classifier, paths, 2))
    assert [path for path, _, _ in answers] == paths
    assert ["b" if reason else "g" for _, _, reason in answers] == list(order)
    assert len({str(ranked) for _, ranked, reason in answers if not reason}) == 1
    assert all(ranked is None for _, ranked, reason in answers if reason)


def test_what_inputs_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b/2.png", "b/c/1.JPG", "b/c/.x.png", "b/.h/1.png", "b/t.txt", "a,b.png", "x[1].png", "x1.png"]
    write(tmp_path, dict.fromkeys(names, b""))
    assert list_images("b") == ["b/2.png", "b/c/1.JPG"]
    assert list_images("b/t.txt,b,b/2.png") == ["b/t.txt", "b/2.png", "b/c/1.JPG"]  # once each; named files need no suffix
    assert list_images("b/*") == ["b/2.png", "b/c/1.JPG", "b/t.txt"]
    assert list_images("b/**/*.JPG") == ["b/c/1.JPG"]
    assert list_images("a,b.png") == ["a,b.png"] and list_images("x[1].png") == ["x[1].png"]
    assert list_images("x*,") == ["x1.png", "x[1].png"]


# Bad input and interruptions.


def test_the_file_appears_complete_or_not_at_all(small_run, tmp_path, monkeypatch):
    workdir, images = small_run
    (workdir / "predictions.csv").write_text("old content\n")
    classify = predict_room.classify

    def interrupted(*arguments):
        for number, answer in enumerate(classify(*arguments)):
            if number == 70:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(predict_room, "classify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_mode(predict, f"--workdir={workdir}", f"--inputs={images}")
    assert (workdir / "predictions.csv").read_text() == "old content\n"
    assert not [path.name for path in workdir.iterdir() if path.name.startswith("predictions") and path.suffix != ".csv"]


def test_missing_files_are_named_and_the_rest_is_classified(small_run, capfd):
    workdir, images = small_run
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={images},nope.png,no/*.gif") == 3
    assert len(rows_of(workdir)) == len(list_images(str(images)))
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.endswith("; skipped")] == [
        f"{name}: cannot be read (No such file or directory); skipped" for name in ("nope.png", "no/*.gif")]


def test_evaluation_refuses_another_network_too(small_run):
    """An option without weights changes no shape, so it would change the accuracy silently."""
    workdir, _ = small_run
    with pytest.raises(SettingError, match="--model_options=.*was made with") as error:
        run_mode(evaluate, f"--workdir={workdir}", "--model_options=overlapping_pooling=true")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--inputs=nowhere/*.png"], 2, ["--inputs=nowhere/*.png", "no match"]),
    (["--inputs=nope.png,nothing/*"], 2, ["--inputs=nope.png,nothing/*"]),
    (["--inputs=,"], 2, ["--inputs=,: no such file"]),
    (["--inputs={images}", "--checkpoint=7"], 3, ["--checkpoint=7", "there are"]),
    (["--inputs={images}", "--checkpoint=newest"], 2, ["--checkpoint=newest"]),
    (["--inputs={images}", "--model=alexnet_tower"], 2, ["--model=alexnet_tower", "alexnet_mini"]),
    (["--inputs={images}", "--pixels=zero_one"], 2, ["--pixels=zero_one", "minus_one_one"]),
    (["--inputs={images}", "--workdir=/nowhere/run"], 3, ["--workdir=/nowhere/run", "holds no checkpoint"]),
])
def test_bad_input(small_run, arguments, code, words):
    workdir, images = small_run
    with pytest.raises((SettingError, UnusableError)) as error:
        run_mode(predict, f"--workdir={workdir}", *(argument.format(images=images) for argument in arguments))
    assert error.value.exit_code == code and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


GARBLED = {
    "a list": (lambda about: [], "is no JSON object"),
    "no classes": (lambda about: {**about, "class_names": []}, "class_names"),
    "classes that are numbers": (lambda about: {**about, "class_names": [1, 2, 3]}, "class_names"),
    "no shape": (lambda about: {name: value for name, value in about.items() if name != "image_shape"}, "image_shape"),
    "a shape of text": (lambda about: {**about, "image_shape": ["32", "32", "3"]}, "image_shape"),
    "no config": (lambda about: {**about, "config": None}, "config"),
}


@pytest.mark.parametrize("how", GARBLED)
def test_a_garbled_description(tmp_path, how):
    """The hash is right, so somebody wrote it like this, by hand or with another program."""
    garble, words = GARBLED[how]
    workdir = save_run(tmp_path / "run", make_config(), "abc", garble)
    with pytest.raises(UnusableError, match=f"progress.json: .*{words}"):
        Classifier(make_config(), Workdir(workdir), mirrored(1))


@pytest.mark.parametrize(("change", "words"), [
    ({"class_names": ["a", "b"]}, "logits.*another network"),
    ({"image_shape": [64, 64, 3]}, "dense6/kernel has shape"),
])
def test_tensors_of_another_network(tmp_path, change, words):
    workdir = save_run(tmp_path / "run", make_config(), "abc", lambda about: about | change)
    with pytest.raises(UnusableError, match=words):
        Classifier(make_config(), Workdir(workdir), mirrored(1))


def test_a_folder_with_checkpoints_alone_is_enough(tmp_path):
    """If config.json is missing, the checkpoint describes the network, not a preset."""
    workdir = save_run(tmp_path / "run", make_config(model_options="dense_units=16"), "abc")
    (workdir / "config.json").unlink()
    write(tmp_path, {"image.png": encoded(STAR)})
    assert run_mode(predict, f"--workdir={workdir}", f"--inputs={tmp_path / 'image.png'}") == 0
    assert len(rows_of(workdir)) == 1
