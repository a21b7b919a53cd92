"""Pictures of a run: the first layer's kernels, an augmented batch, the confusion matrix, the most confident mistakes.

Each is a PNG file in the workdir's folder `pictures` and an image in TensorBoard, under the step that it shows. Drawing changes
neither random state nor records, and a picture that cannot be written does not end a run.
"""

import dataclasses
import functools
import json
import os
import re
import shutil

import keras
import numpy as np
import tensorflow as tf

from alexnet import names
from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import one_line_of
from train_lib.augment import augment
from train_lib.hooks import Hook
from train_lib.records import evaluation_files
from train_lib.records.terminal import say
from train_lib.steps import scale_pixels

FOLDER = "pictures"
CELL = 96  # pixels; images of a batch are enlarged to this by a whole factor
LARGE_IMAGE = 64  # pixels; of larger images, fewer are shown
_NAME = re.compile(r"(kernels|batch|confusion_matrix|mistakes)-([0-9]{8,})\.png")  # other files belong to someone else


def _harmless(draw):
    """Decorator for methods that draw: only the chief draws, and an error becomes a line, because no picture is worth a run."""

    @functools.wraps(draw)
    def harmless(self, *arguments):
        if not self._run.workdir.is_ours:
            return
        try:
            if self._writer is None:
                self._open()
            draw(self, *arguments)
            self._writer.flush()
        except Exception as error:  # from the file system, a JSON file that a crash cut off, or a library
            self._log(f"{self._folder}: no picture at step {self._run.state.step} ({one_line_of(error)}); going on")

    return harmless


class Pictures(Hook):
    """Draws the pictures of one run. On a worker other than the chief it draws nothing.

    Pictures of steps after the one at which the run starts or resumes are removed, and TensorBoard's file is rewritten from the
    rest. On several workers, the mistakes are those among the chief's share of the examples. Everything else covers all examples.
    """

    def __init__(self, run, log=say):
        self._run, self._log, self._first_step = run, log, run.state.step
        self._folder, self._writer = run.workdir.path / FOLDER, None

    def on_start(self, run):
        self.draw_batch()

    def after_evaluation(self, run, evaluation):
        if evaluation.kind == "validation":
            self.draw_evaluation(evaluation.evaluator, evaluation.is_best)
        else:
            self.draw_test(evaluation.evaluator, evaluation.step)

    @_harmless
    def draw_batch(self):
        """Draws the first images of the next training batch as the network sees them. Only once per run."""
        if not any(self._folder.glob("batch-*.png")):
            images = next_images(self._run)
            sheet = tile(images, 8 if images.shape[1] <= LARGE_IMAGE else 4, CELL)
            self._add("batch", self._run.state.step, tf.io.encode_png(sheet).numpy())

    @_harmless
    def draw_evaluation(self, evaluator, is_best):
        """Draws the first layer's kernels, and keeps the results of a SplitEvaluator (or None) if they are the best so far."""
        run, config = self._run, self._run.config
        kernels = first_kernels(run.state.model)
        if kernels is not None:
            towers = names.parse_options(config.network.model, config.network.model_options).get("towers", 1)
            self._add("kernels", run.state.step, tf.io.encode_png(kernel_grid(kernels, towers)).numpy())
        if evaluator and is_best:
            split_name, class_names = config.data.validation_split, run.source.class_names
            evaluation_files.write(run.workdir, FOLDER, evaluator, run.state.step, split_name, class_names)

    @_harmless
    def draw_test(self, evaluator, best_step):
        """Draws the confusion matrix and the most confident mistakes of the best checkpoint.

        They are those of the SplitEvaluator of the test split; without one, those of the validation split.
        """
        if evaluator:
            data, modes, class_names = self._run.config.data, self._run.config.modes, self._run.source.class_names
            evaluation_files.write(
                self._run.workdir, FOLDER, evaluator, best_step, data.test_split, class_names, modes.test_crops)
        if all((self._folder / name).exists() for name in evaluation_files.FILES):
            step = json.loads((self._folder / evaluation_files.EVALUATION).read_text())["step"]
            for name, png in evaluation_files.draw(self._folder).items():
                self._add(name, step, png)

    def _open(self):
        """Removes the pictures of later steps, and opens TensorBoard's writer with the remaining ones."""
        self._folder.mkdir(exist_ok=True)
        tensorboard = self._run.workdir.path / "tensorboard" / FOLDER
        shutil.rmtree(tensorboard, ignore_errors=True)
        writer = tf.summary.create_file_writer(os.fsencode(tensorboard))
        last = self._first_step or -1  # a new run keeps none
        for path in sorted(self._folder.iterdir()):
            match, is_result = _NAME.fullmatch(path.name), path.name in evaluation_files.FILES
            if (match and int(match[2]) > last) or (is_result and last < 0):
                path.unlink()
            elif match:
                try:
                    _summarize(writer, match[1], int(match[2]), path.read_bytes())
                except tf.errors.InvalidArgumentError:  # a loss of power may leave an empty file
                    path.unlink()
        self._writer = writer

    def _add(self, name, step, png):
        """Writes a picture, the bytes of a PNG file. TensorBoard gets it only the first time."""
        path = self._folder / f"{name}-{step:08d}.png"
        is_new = not path.exists()
        self._run.workdir.write_file(f"{FOLDER}/{path.name}", png)
        if is_new:
            _summarize(self._writer, name, step, png)


def _summarize(writer, name, step, png):
    with writer.as_default(step=step):
        tf.summary.image(name, tf.io.decode_png(png, channels=3)[tf.newaxis])


def next_images(run):
    """The first images of the batch that a Run trains on next, with all augmentation: at most 32, or 8 large ones.

    They go through the pipeline and the functions that training uses, as the share of one replica, because what happens to an
    example depends only on its place in the batch. A stream shows other examples in these places: to know the right ones, its
    whole shuffle buffer would have to be filled once more. Returns uint8 [n, height, width, 3], the network's input scaled back.
    """
    config, split, pixels, step = run.config, run.train_split.on_host, run.state.pixels, run.state.step
    size, most = config.optimization.global_batch_size, 32 if split.image_shape[0] <= LARGE_IMAGE else 8
    # An even number if the batch size is even, because mixup and CutMix mix pairs.
    shown = max(n for n in range(1, most + 1) if size % n == 0 and (n % 2 == 0 or size % 2 == 1))
    if hasattr(split, "shuffle_buffer"):
        split = dataclasses.replace(split, shuffle_buffer=shown)
    batch = next(iter(run.training_dataset(step, Shard(num_replicas=size // shown), split)))
    images = scale_pixels(batch["image"], pixels, run.state.model.inputs[0].dtype)
    images, _ = augment(config, pixels, images, batch["label"], tf.constant(step, tf.int64), 0)
    return np.clip(np.rint(images.numpy() / pixels.scale + pixels.offset), 0, 255).astype(np.uint8)


def first_kernels(model):
    """The kernels of the first convolution over three channels, float [height, width, 3, kernels]; None if there is none."""
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and len(kernel.shape) == 4 and kernel.shape[2] == 3:
            return keras.ops.convert_to_numpy(kernel)
    return None


def kernel_grid(kernels, towers=1):
    """Kernels as small images in rows of 16, one tower below the other, as in the paper's figure 3: uint8 [height, width, 3].

    `kernels`, float [height, width, 3, n], has one tower after the other. Each kernel is scaled by its own largest weight; a
    weight of 0 is grey.
    """
    kernels = np.nan_to_num(np.moveaxis(np.asarray(kernels, np.float64), -1, 0), posinf=0.0, neginf=0.0)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    images = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1)).astype(np.uint8)
    grids = [tile(tower, 16 if len(tower) >= 48 else 8, 44) for tower in np.split(images, towers)]
    space = np.full((12, grids[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([piece for grid in grids for piece in (space, grid)][1:])


def tile(images, columns, cell, gap=4):
    """Puts images, uint8 [n, height, width, 3], side by side in rows, on white, `gap` pixels apart: uint8 [rows, columns, 3].

    Each is enlarged by a whole factor to a width of at most `cell` pixels.
    """
    factor, columns = max(1, cell // images.shape[2]), min(columns, len(images))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    images = np.pad(images, [(0, -len(images) % columns), (0, gap), (0, gap), (0, 0)], constant_values=255)
    _, height, width, _ = images.shape
    rows = images.reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, 3)[:-gap, :-gap]
