"""Classifies image files: a table on the terminal, and predictions.csv with all of them."""

import contextlib
import csv
import os
import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.common.errors import UnusableError
from input_pipeline.images import decoding as augment
from input_pipeline.images.loading import why_undecodable
from train_lib.cli.failures import explained
from train_lib.cli.inputs import list_images, printable
from train_lib.distribution.strategy import create_strategy
from train_lib.modes.classifier import open_classifier
from train_lib.records.terminal import percent

FILE = "predictions.csv"
MOST_ROWS_IN_TABLE = 30
LONGEST_PATH_IN_TABLE = 48


def predict(config, workdir):
    """The mode `predict`: classifies --inputs with --checkpoint of a Workdir, prints a table and writes predictions.csv.

    Returns:
      0; UnusableError's exit code where a file could not be used, each of which is named on stderr and skipped.
    """
    with explained(config):
        return _predict(config, workdir)


def _predict(config, workdir):
    paths = list_images(config.modes.inputs)
    classifier = open_classifier(config, workdir, create_strategy(config))
    batch_size = min(config.optimization.global_batch_size, len(paths))
    shown, num_bad = [], 0
    bar = tqdm(total=len(paths), unit="image", disable=None, dynamic_ncols=True)  # None: where stderr is no terminal
    with _csv_by_rename(workdir.path / FILE) as table, bar:
        columns = [f"{column}_{rank}" for rank in range(1, classifier.top + 1) for column in ("class", "probability")]
        table.writerow(["path", *columns])
        for path, ranked, reason in classify(classifier, paths, batch_size, config.data.decode_threads):
            if reason:
                num_bad += 1
                bar.write(f"{printable(path)}: {reason}; skipped", file=sys.stderr)
            else:
                table.writerow([path, *(cell for pair in ranked for cell in pair)])
                if len(shown) < MOST_ROWS_IN_TABLE:
                    shown.append((path, ranked))
            bar.update()
    num_good = len(paths) - num_bad
    print(f"{num_good} of {len(paths)} images classified by {classifier.checkpoint.folder}")
    if shown:
        print(format_table(shown))
    if num_good > len(shown):
        print(f"... and {num_good - len(shown)} more")
    print(f"written: {workdir.path / FILE}")
    return UnusableError.exit_code if num_bad else 0


def classify(classifier, paths, batch_size, decode_threads=0):
    """Classifies files, decoded in parallel, in their order.

    Args:
      classifier: Classifier.
      paths: of image files.
      batch_size: images to compute at a time.
      decode_threads: how many to decode with, 0: one per core.

    Yields:
      (path, ranked, reason), one for each path. `ranked`: the most probable classes as (name, probability), the best first;
      None where the file cannot be used, which `reason`, else empty, explains.
    """
    def decode(position, path):
        return position, classifier.view(augment.decode(tf.io.read_file(path)))

    files = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths]).enumerate()
    threads, done = decode_threads or CORES, 0
    views = files.map(decode, num_parallel_calls=threads).ignore_errors()
    for positions, images in without_autotune(views.batch(batch_size).prefetch(2), threads).as_numpy_iterator():
        for position, logits in zip(positions, classifier.logits(images, batch_size), strict=True):
            yield from _bad_files(classifier, paths[done:position])
            yield paths[position], _ranked(classifier, logits), ""
            done = position + 1
    yield from _bad_files(classifier, paths[done:])


def _bad_files(classifier, paths):
    for path in paths:
        try:
            with open(path, "rb") as file:
                reason = why_undecodable(file.read(), classifier.view)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        yield path, None, reason or "could not be decoded"


def _ranked(classifier, logits):
    """[(class name, probability)] of the `classifier.top` largest logits, equal ones in the order of the classes."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-logits, kind="stable")[: classifier.top]
    # The shortest decimal that gives the same float32 or float64 again.
    return [(classifier.class_names[label], float(str(probabilities[label]))) for label in best]


@contextlib.contextmanager
def _csv_by_rename(path):
    """Context manager that gives a csv writer; the file appears whole when it is left, and not at all after an error.

    Text is quoted, numbers are not. The bytes of a path are written as they are, also those that are no UTF-8.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        temporary.replace(path)
    except OSError as error:
        raise UnusableError(f"{path}: cannot be written ({error.strerror}); make room, or give another --workdir") from None
    finally:
        temporary.unlink(missing_ok=True)


def format_table(rows):
    """Text of (path, ranked) pairs: one line each, under a head, in columns."""
    cells = [["image", "prediction", *("" for _ in rows[0][1][1:])]]
    for path, ranked in rows:
        name = printable(path)
        name = name if len(name) <= LONGEST_PATH_IN_TABLE else "..." + name[3 - LONGEST_PATH_IN_TABLE :]
        cells.append([name, *(f"{printable(label)} {percent(probability)}" for label, probability in ranked)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
