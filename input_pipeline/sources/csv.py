"""--dataset=csv:PATH, a table of image files."""

import csv
import os
import pathlib
import re

from input_pipeline.common.errors import UnusableError
from input_pipeline.sources.base import WITHOUT_SPLITS
from input_pipeline.sources.labels import numbered_classes
from input_pipeline.sources.listed import Listed, image_files

_LONGEST_LINE = 2**20


def open_source(config, path, bad):
    """Opens a table with the columns image, label and, optionally, split; ignores other columns.

    The table is UTF-8 with a header line. The paths of the images are relative to its folder. Without a column `split`, all rows
    are `train`. Labels are the names of classes, which are sorted by name. If all labels are whole numbers, they count the
    classes from 0 without a gap. The order of the examples is fixed and mixes the classes. Raises UnusableError if it is no such
    table, or a row lacks a value, names a missing file or has a label out of range.
    """
    table = pathlib.Path(path)
    rows = _rows(table, bad)
    labels = {row["label"] for row in rows}
    if all(re.fullmatch(r"[+-]?\d{1,18}", label) for label in labels):
        numbers = {label: int(label) for label in labels}
        names = numbered_classes(numbers.values())
    else:
        names = sorted(labels)
        numbers = {name: number for number, name in enumerate(names)}
    examples = {}
    for row in rows:
        label = numbers[row["label"]]
        if 0 <= label < len(names):
            listed = Listed(label, os.fsencode(row["path"]), f"{row['where']} ({row['path']})")
            examples.setdefault(row["split"], []).append((os.fsencode(row["image"]), listed))
        else:
            remedy = "whole numbers must count the classes from 0 without a gap; correct the label, or give names"
            bad.add(row["where"], f"has the label {label}, out of range", remedy)
    if not examples:
        raise UnusableError(f"{table}: contains no row that can be used; give one with the columns image,label[,split]")
    return image_files(config, names, examples, table, bad)


def _rows(table, bad):
    """The rows that name an image file, each a dict with image, label, split, path and where."""
    rows = []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(_lines(file), skipinitialspace=True)
            for name in ("image", "label"):
                if name not in (reader.fieldnames or ()):
                    remedy = "the first line must name the columns image,label[,split]"
                    raise UnusableError(f"{table}: has no column {name}; {remedy}")
            for row in reader:
                row = {name: (row.get(name, WITHOUT_SPLITS) or "").strip() for name in ("image", "label", "split")}
                row["where"] = f"{table} line {reader.line_num}"
                row["path"] = os.path.join(table.parent, os.path.expanduser(row["image"]))
                if empty := [name for name in ("image", "label", "split") if not row[name]]:
                    bad.add(row["where"], f"has no {empty[0]}", "fill the column in, or remove the row")
                elif not re.fullmatch(r"[\w-]+", row["split"]):
                    remedy = "use letters, digits, _ and -, such as train and test"
                    bad.add(row["where"], f"has the split {row['split']!r}", remedy)
                elif not os.path.isfile(row["path"]):
                    remedy = "give a path relative to the table's folder, or remove the row"
                    bad.add(row["where"], f"names {row['path']}, and there is no such file", remedy)
                else:
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnusableError(f"{table}: cannot be read ({error}); give a table in UTF-8 with the columns image,label") from None
    return rows


def _lines(file):
    """The lines of a table. The csv module would read a line of gigabytes before it finds that it is too long."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of more than {_LONGEST_LINE} characters")
        yield line
