"""Draws docs/picture.png, the picture at the top of the README, from the workdir of a finished run.

    python main.py --preset=cifar10_fast --workdir=runs/picture
    python docs/make_picture.py runs/picture

It shows the first training batch after augmentation, the kernels of the first layer in the best checkpoint, and the learning
curve. The background is transparent, and the text is of a grey that is legible on white and on black.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # not needed once the project is installed

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

GREY, BLUE, ORANGE = "#7a7a7a", "#2f7fd6", "#d9730d"
CELL, GAP = 96, 4  # pixels of an image and of the gap in a run's picture of its batch


def sheet(images, columns, gap=0.06):
    """Images [n, height, width, 3] in rows, as float RGBA in [0, 1] with transparent gaps (a share of the width) between them."""
    factor = max(1, 96 // images.shape[2])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    gap = round(gap * width)
    rgba = np.zeros((count // columns, height + gap, columns, width + gap, 4))
    for index in range(count // columns * columns):
        rgba[index // columns, :height, index % columns, :width] = np.dstack([images[index], np.ones((height, width))])
    return rgba.reshape(-1, columns * (width + gap), 4)[:-gap, :-gap]


def batch(workdir):
    """The images of the first training batch, float [32, size, size, 3] in [0, 1]."""
    (path,) = workdir.glob("pictures/batch-*.png")
    picture = imread(path)[..., :3]
    starts = [range(0, size, CELL + GAP) for size in picture.shape[:2]]
    return np.array([picture[top : top + CELL, left : left + CELL] for top in starts[0] for left in starts[1]])


def kernels(workdir):
    """Kernels of the first layer in the best checkpoint, [n, height, width, 3], each scaled to [0, 1]; 0.5 is a weight of 0."""
    best = (workdir / "checkpoints" / "best").read_text().strip()
    kernel = tf.train.load_checkpoint(str(workdir / "checkpoints" / best / "ckpt")).get_tensor("model/conv1/kernel")
    kernel = np.moveaxis(kernel, -1, 0)
    return 0.5 + 0.5 * kernel / np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)


def main(workdir):
    """Draws the three parts side by side."""
    workdir = pathlib.Path(workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test_accuracy = json.loads((workdir / "result.json").read_text())["test_accuracy"]
    figure = Figure(figsize=(10.5, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
    left.imshow(sheet(batch(workdir)[:16], 4))
    left.set_title("training images after augmentation", color=GREY, fontsize=10)
    found = kernels(workdir)
    middle.imshow(sheet(found, 8 if len(found) >= 48 else 6, gap=0.12))
    middle.set_title("learned kernels of the first layer", color=GREY, fontsize=10)
    for axes in (left, middle):
        axes.axis("off")
    for kind, label, color in (("train", "training, augmented", BLUE), ("validation", "validation", ORANGE)):
        points = [(record["epoch"], 100 * record["accuracy"]) for record in records if record["kind"] == kind]
        right.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.8)
    right.set_title(f"accuracy in %; on the test split {100 * test_accuracy:.1f} %", color=GREY, fontsize=10)
    right.set_xlabel("epoch", color=GREY)
    right.tick_params(colors=GREY)
    right.grid(color=GREY, alpha=0.25)
    right.legend(frameon=False, labelcolor=GREY, loc="lower right")
    for name, spine in right.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    path = pathlib.Path(__file__).with_name("picture.png")
    figure.savefig(path, dpi=110, transparent=True)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
