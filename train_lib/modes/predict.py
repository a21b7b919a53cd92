"""The mode `predict`: classifies image files. Prints a table and writes predictions.csv with all of them."""

import csv
import io
import itertools
import os
import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from input_pipeline.common.batches import CORES, without_autotune
from input_pipeline.common.errors import UnusableError
from input_pipeline.images import decoding
from input_pipeline.images.loading import why_undecodable
from train_lib.cli.failures import explained
from train_lib.cli.inputs import list_images, printable
from train_lib.distribution.strategy import create_strategy
from train_lib.modes.classifier import Classifier
from train_lib.records.terminal import percent

MOST_ROWS_IN_TABLE = 30
LONGEST_PATH_IN_TABLE = 48


def predict(config, workdir):
    """Classifies --inputs, prints a table, and writes predictions.csv with one rename when all images are classified.

    Its text is quoted, its numbers are not. Paths are written as the bytes they are, even if they are not UTF-8. Files that
    cannot be used are named on stderr and skipped; the exit code is then that of UnusableError.
    """
    paths, classified = list_images(config.modes.inputs), []
    with explained(config):
        classifier = Classifier(config, workdir, create_strategy(config))
        batch_size = min(config.optimization.global_batch_size, len(paths))
        with tqdm(total=len(paths), unit="image", disable=None, dynamic_ncols=True) as bar:  # None: hidden if stderr is a file
            for path, ranked, reason in classify(classifier, paths, batch_size, config.data.decode_threads):
                bar.update()
                if reason:
                    bar.write(f"{printable(path)}: {reason}; skipped", file=sys.stderr)
                else:
                    classified.append((path, ranked))
    table, ranks = io.StringIO(), range(1, classifier.top + 1)
    writer = csv.writer(table, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(["path", *(f"{column}_{rank}" for rank in ranks for column in ("class", "probability"))])
    writer.writerows([path, *itertools.chain(*ranked)] for path, ranked in classified)
    written = workdir.write_file("predictions.csv", table.getvalue().encode(errors="surrogateescape"))
    print(f"{len(classified)} of {len(paths)} images classified by {classifier.checkpoint.folder}")
    if classified:
        print(format_table(classified[:MOST_ROWS_IN_TABLE]))
    if len(classified) > MOST_ROWS_IN_TABLE:
        print(f"... and {len(classified) - MOST_ROWS_IN_TABLE} more")
    print(f"written: {written}")
    return 0 if len(classified) == len(paths) else UnusableError.exit_code


def classify(classifier, paths, batch_size, decode_threads=0):
    """Classifies image files, in their order, with a Classifier and `batch_size` images per call of the network.

    Yields (path, [(class name, probability)] with the best class first, ""), or (path, None, why the file cannot be used).
    `decode_threads` images are decoded at a time; 0 stands for one per core.
    """
    def decode(position, path):
        return position, classifier.view(decoding.decode(tf.io.read_file(path)))

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
    """[(class name, probability)] of the `classifier.top` largest logits; equal ones in the order of the classes."""
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-logits, kind="stable")[: classifier.top]
    # str finds the shortest decimal that stands for the same float32 or float64.
    return [(classifier.class_names[label], float(str(probabilities[label]))) for label in best]


def format_table(rows):
    """(path, ranked) pairs as text in columns: a heading, then one line each."""
    cells = [["image", "prediction", *("" for _ in rows[0][1][1:])]]
    for path, ranked in rows:
        name = printable(path)
        name = name if len(name) <= LONGEST_PATH_IN_TABLE else "..." + name[3 - LONGEST_PATH_IN_TABLE :]
        cells.append([name, *(f"{printable(label)} {percent(probability)}" for label, probability in ranked)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
