"""Small data sets like those of users, one of each kind, for the tests of the sources."""

import io

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def picture(index, size=(8, 8)):
    """An image whose colour encodes its index: uint8 [height, width, 3]."""
    return np.full((*size, 3), (index * 5 % 256, index % 256, 255 - index % 256), np.uint8)


def encoded(image, kind="PNG", **more):
    """The bytes of an image file; `image` is an array or a PIL image."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **more)
    return file.getvalue()


def write_folder(root, splits=("train", "test"), count=30, label_of=lambda index: index % 3, size=(8, 8)):
    """<split>/<class>/<index>.png; with splits=("",) no folder for the split. The index of an image is in its pixels."""
    for split in splits:
        for index in range(count):
            folder = root / split / CLASSES[label_of(index)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:03}.png").write_bytes(encoded(picture(index, size)))
    return root


def write_npz(path, count=30, **more):
    """x_train, y_train, x_test, y_test as keras.datasets saves CIFAR-10 and MNIST."""
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = np.stack([picture(index) for index in range(count)])
        arrays[f"y_{split}"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    np.savez(path, **(arrays | more))
    return path


def write_csv(folder, count=30, header="image,label,split", splits=("train", "test"), extra=()):
    """table.csv next to images/; `extra` are lines appended to it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = [header]
    for index in range(count):
        (folder / "images" / f"{index:03}.png").write_bytes(encoded(picture(index)))
        for split in splits:
            lines.append(",".join([f"images/{index:03}.png", CLASSES[index % 3], split][: header.count(",") + 1]))
    (folder / "table.csv").write_text("\n".join([*lines, *extra]) + "\n")
    return folder / "table.csv"


def write_records(folder, count=30, num_files=3, splits=("train", "test")):
    """<split>-*.tfrecord and class_names.txt."""
    from input_pipeline.sources.tfrecord import write_tfrecords

    for split in splits:
        write_tfrecords(folder, ((picture(index), index % 3) for index in range(count)), CLASSES, split, num_files)
    return folder


def write_any(kind, folder):
    """A data set of any kind with 30 examples per split; returns the value for --dataset."""
    if kind == "folder":
        return f"folder:{write_folder(folder)}"
    if kind == "npz":
        return f"npz:{write_npz(folder / 'data.npz', class_names=np.array(CLASSES))}"
    if kind == "csv":
        return f"csv:{write_csv(folder)}"
    return f"tfrecord:{write_records(folder)}/*.tfrecord"


KINDS = ("folder", "npz", "csv", "tfrecord")
