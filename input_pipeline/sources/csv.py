"""--dataset=csv:PATH, a table of image files."""

import csv
import os
import pathlib
import re

import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from input_pipeline.images.bad_examples import BadExamples
from input_pipeline.sources.folder import WITHOUT_SPLITS
from input_pipeline.sources.listed import Listed, ListedSource, common_shape, count_classes, is_readable, scattered

_LONGEST_LINE = 2**20


def open_csv(config, path):
    """Opens a table with the columns image, label and, optionally, split; others are left aside.

    Labels are names of classes, ordered by name; where all are whole numbers, they count the classes from 0 without a gap.
    Without the column `split` all rows are `train`. The order of the examples is fixed and mixes the classes.

    Args:
      config: DataConfig.
      path: the file, UTF-8 with a header line; the images' paths in it are relative to its folder.

    Raises:
      UnusableError: it is no such table, or a row lacks a value, names no file or has a label out of range.
    """
    table, bad = pathlib.Path(os.path.expanduser(path)), BadExamples(config.max_bad_examples)
    rows = _rows(table, bad)
    names = _class_names(rows, bad)
    index = {name: number for number, name in enumerate(names)}
    rows = [row for row in rows if row["label"] in index]
    if not rows:
        raise UnusableError(f"{table}: holds no row that can be used; give one with the columns image,label[,split]")
    examples = {}
    for row in rows:
        listed = Listed(index[row["label"]], os.fsencode(row["path"]), row["where"] + f" ({row['path']})")
        examples.setdefault(row["split"], []).append((row["image"], listed))
    mixed = {}
    for split, pairs in examples.items():
        keys = {listed.where: image.encode("utf-8", "surrogateescape") for image, listed in pairs}
        mixed[split] = scattered([listed for _, listed in pairs], lambda example, keys=keys: keys[example.where])
    shape = common_shape(listed.image for pairs in mixed.values() for listed in pairs)
    return ListedSource(config.dataset, tuple(names), shape, mixed, tf.io.read_file, str(table), bad=bad)


def _rows(table, bad):
    """The rows that name an image file, each a dict with image, label, split, path and where."""
    rows = []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(_lines(file), skipinitialspace=True)
            missing = [name for name in ("image", "label") if name not in (reader.fieldnames or ())]
            if missing:
                remedy = "the first line must name the columns image,label[,split]"
                raise UnusableError(f"{table}: has no column {missing[0]}; {remedy}")
            has_splits = "split" in reader.fieldnames
            for row in reader:
                where = f"{table} line {reader.line_num}"
                row = {name: (row[name] or "").strip() for name in ("image", "label", *(["split"] * has_splits))}
                row.setdefault("split", WITHOUT_SPLITS)
                row |= {"where": where, "path": os.path.join(table.parent, os.path.expanduser(row["image"]))}
                if _check_row(row, bad):
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnusableError(f"{table}: cannot be read ({error}); give a table in UTF-8 with the columns image,label") from None
    return rows


def _lines(file):
    """The lines of a table; csv would first read one of gigabytes and then find that it is too long."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of more than {_LONGEST_LINE} characters")
        yield line


def _check_row(row, bad):
    empty = [name for name in ("image", "label", "split") if not row[name]]
    if empty:
        bad.add(row["where"], f"has no {empty[0]}", "fill the column in, or remove the row")
    elif not re.fullmatch(r"[\w-]+", row["split"]):
        bad.add(row["where"], f"has the split {row['split']!r}", "use letters, digits, _ and -, such as train and test")
    elif not os.path.isfile(row["path"]):
        bad.add(row["where"], f"names {row['path']}, and there is no such file",
                "give a path relative to the table's folder, or remove the row")
    else:
        return is_readable(row["path"], row["where"], bad)
    return False


def _class_names(rows, bad):
    labels = {row["label"] for row in rows}
    if not all(re.fullmatch(r"[+-]?\d{1,18}", label) for label in labels):
        return sorted(labels)
    count = count_classes(int(label) for label in labels)
    for row in rows:
        if not 0 <= int(row["label"]) < count:
            remedy = "labels that are whole numbers count the classes from 0 without a gap; mend it, or give names"
            bad.add(row["where"], f"has the label {row['label']}, out of range", remedy)
    for row in rows:
        row["label"] = str(int(row["label"]))
    return [str(number) for number in range(count)]
