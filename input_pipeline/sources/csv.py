"""--dataset=csv:PATH, a table of image files."""

import collections
import os
import pathlib
import re
import sys
import unicodedata
from typing import NamedTuple

from input_pipeline.common.errors import UnusableError, one_line
from input_pipeline.config import IMAGE_FILES
from input_pipeline.sources.base import WITHOUT_SPLITS
from input_pipeline.sources.labels import check_labels, numbered_classes
from input_pipeline.sources.listed import Listed, image_files

COLUMNS = ("image", "label", "split")
_LONGEST_LINE = 2**20  # characters, also of a field of several lines
_WANTED = "the first line must name the columns image,label[,split]"
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_OPENING = re.compile(r'[ \t]*"')
_BLANKS = re.compile(r"[ \t]*")
_QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')  # up to the closing quotation mark, or to the end of the line


class Row(NamedTuple):
    """A row of a table: its three columns, the path of the image file, and the file and line where the row begins."""

    image: str
    label: str
    split: str
    path: str
    where: str


def open_source(config, path, bad):
    """Opens a table with the columns image, label and, optionally, split; ignores other columns.

    The table is UTF-8 with a header line. The paths of the images are relative to its folder. Without a column `split`, all rows
    are `train`. Labels are the names of classes, which are sorted by name. If all labels are whole numbers, they count the
    classes from 0 without a gap. The order of the examples is fixed and mixes the classes. Raises UnusableError if it is no such
    table, if a row is not divided as the header says, lacks a value or names a missing file, and for labels out of range.
    """
    table = str(pathlib.Path(path))
    rows = _rows(table, bad)
    if not rows:
        raise UnusableError(f"{table}: contains no row that can be used; give one with the columns image,label[,split]")
    labels, faults = {row.label for row in rows}, {}
    if all(re.fullmatch(r"[+-]?\d{1,18}", label) for label in labels):
        numbers = {label: int(label) for label in labels}
        names = numbered_classes(numbers.values())
        of_splits = collections.defaultdict(list)
        for row in rows:
            of_splits[row.split].append(numbers[row.label])
        faults = check_labels(table, of_splits, len(names), "give names of classes instead of numbers")
    else:
        names = sorted(labels)
        numbers = {name: number for number, name in enumerate(names)}
    examples = {}
    for row in rows:
        label = numbers[row.label]
        if 0 <= label < len(names):
            listed = Listed(label, os.fsencode(row.path), f"{row.where} ({row.path})")
            examples.setdefault(row.split, []).append((os.fsencode(row.image), listed))
        elif row.split in faults:
            examples.setdefault(row.split, [])
        else:
            remedy = "whole numbers must count the classes from 0 without a gap; correct the label, or give names"
            bad.add(row.where, f"has the label {label}, out of range", remedy)
    source = image_files(config, names, examples, table, bad)
    source.faults.update(faults)
    return source


def _rows(table, bad):
    """The rows that name an image file. Raises UnusableError if the file is no table; notes rows that lack something as bad."""
    try:
        with open(table, encoding="utf-8-sig") as file:
            records = _records(table, file)
            _, header, _ = next(records, (1, None, ()))
            if header is None:
                raise UnusableError(f"{table}: is empty; {_WANTED}")
            columns, count = _columns(table, header), 0
            rows, files = [], _Files(os.path.dirname(table))
            for count, (line, fields, loose) in enumerate(records, 1):  # noqa: B007
                where = f"{table} line {line}"
                _check_fields(where, fields, loose, columns, len(header))
                if row := _row(where, fields, columns, files, bad):
                    rows.append(row)
    except UnicodeDecodeError as error:
        raise UnusableError(_not_utf8(table, error)) from None
    except OSError as error:
        raise UnusableError(f"{table}: cannot be read ({error}); give a table in UTF-8 with the columns image,label") from None
    if not count:
        raise UnusableError(f"{table}: contains no row, only a header; add a row for each image")
    _check_splits(table, rows)
    return rows


def _columns(table, header):
    """{column: its number, None for a missing `split`}. Raises UnusableError if the header lacks a column or repeats one."""
    header = [name.lstrip(" \t") for name in header]
    names = one_line(", ".join(header))
    for column in COLUMNS:
        if column in header:
            continue
        used = [f"; it is separated by {name}, and commas are needed: save it as comma-separated values"
                for separator, name in _SEPARATORS.items() if any(separator in name for name in header)]
        close = [name for name in header if "".join(name.split()).casefold() == column]
        if close:
            raise UnusableError(f"{table}: has no column {column}, but {close[0]!r}; capitals and blanks matter: write {column}")
        if column != "split":
            remedy = used[0] if used else f"; {_WANTED}"
            raise UnusableError(f"{table}: has no column {column}, its first line is {names}{remedy}")
    for name, count in collections.Counter(header).items():
        if count > 1 and name.strip():
            raise UnusableError(f"{table}: has {count} columns {one_line(name)}; remove or rename all but one of {names}")
    return {column: header.index(column) if column in header else None for column in COLUMNS}


def _check_fields(where, fields, loose, columns, width):
    """Raises UnusableError if a row is divided in another way than the header, so that its values cannot be trusted."""
    if len(fields) > width:
        remedy = "put a text with a comma in quotation marks"
        raise UnusableError(f"{where}: has {len(fields)} fields, the header names {width}: {remedy}")
    if loose is None:  # no quotation mark in the row
        return
    for column, number in columns.items():
        if number is None or number >= len(fields):
            continue
        if "\n" in fields[number]:
            remedy = "close the quotation mark that opens before it, or remove the line break"
            raise UnusableError(f"{where}: has a line break in its {column}; {remedy}")
        if number in loose:
            remedy = "put the whole field in quotation marks and double those inside, or remove it"
            raise UnusableError(f"{where}: has a quotation mark within its {column} {one_line(fields[number].strip())}; {remedy}")


def _row(where, fields, columns, files, bad):
    """The Row of these fields; None if it lacks something, which is noted as a bad example."""
    image, label, split = [WITHOUT_SPLITS if number is None else fields[number].strip() if number < len(fields) else ""
                           for number in columns.values()]
    if not (image and label and split):
        empty = COLUMNS[[image, label, split].index("")]
        bad.add(where, f"has no {empty}", "fill the column in, or remove the row")
    elif not re.fullmatch(r"[\w-]+", split):
        bad.add(where, f"has the split {split!r}", "use letters, digits, _ and -, such as train and test")
    elif not (path := files.find(image)):
        bad.add(where, *files.why_missing(image))
    else:
        return Row(image, nfc(label), nfc(split), path, where)
    return None


def _check_splits(table, rows):
    """Raises UnusableError if names of splits differ only in capitals. Says which classes no row of the training split has."""
    first = {}
    for row in rows:
        first.setdefault(row.split, row)
    seen = {}
    for name, row in first.items():
        other = seen.setdefault(name.casefold(), row)
        if other is not row:
            remedy = "write the name of a split in one way"
            raise UnusableError(f"{row.where}: has the split {name}, {other.where} has {other.split}; {remedy}")
    if WITHOUT_SPLITS in first:
        trained = {row.label for row in rows if row.split == WITHOUT_SPLITS}
        if untrained := sorted({row.label for row in rows} - trained):
            shown = ("class " if len(untrained) == 1 else "classes ") + ", ".join(untrained[:5] + ["..."] * (len(untrained) > 5))
            print(one_line(f"{table}: no row of {WITHOUT_SPLITS} has the {shown}"), file=sys.stderr)


def _records(table, file):
    """Yields (line where it begins, fields, loose) of each row that is not blank.

    A field in quotation marks may contain commas, line breaks and doubled quotation marks. `loose` are the numbers of the other
    fields that contain quotation marks, and None if the row contains none. Raises UnusableError if one is not closed.
    """
    lines = _lines(table, file)
    for number, line in lines:
        if '"' in line:
            simple = line[1:-1].split('","')
            if line[0] == line[-1] == '"' and line.count('"') == 2 * len(simple):  # faster, and the usual form
                yield number, simple, ()
            else:
                yield number, *_quoted_fields(table, number, line, lines)
        elif line and not line.isspace():
            yield number, line.split(","), None


def _quoted_fields(table, number, line, lines):
    """(fields, numbers of the fields with loose quotation marks) of a row that begins in `line` and may go on in `lines`."""
    fields, loose, position = [], [], 0
    while True:
        if opening := _OPENING.match(line, position):
            text, line, position, number = _quoted_field(table, number, line, opening.end(), lines)
        else:
            end = line.find(",", position)
            end = len(line) if end < 0 else end
            text, position = line[position:end], end
            if '"' in text:
                loose.append(len(fields))
        fields.append(text)
        if position == len(line):
            return fields, loose
        position += 1  # behind the comma


def _quoted_field(table, number, line, position, lines):
    """Reads behind an opening quotation mark. Returns (text, the line where it is closed, position of what follows, number)."""
    parts, size, opened = [], 0, number
    while (end := _QUOTED.match(line, position).end()) == len(line):
        parts.append(line[position:])
        size += len(line) + 1
        number, line = next(lines, (number, None))
        if line is None or size > _LONGEST_LINE:
            within = "" if line is None else f" within {_LONGEST_LINE} characters"
            remedy = "close it, or double a quotation mark that belongs to the text"
            raise UnusableError(f"{table} line {opened}: opens a quotation mark that is not closed{within}; {remedy}")
        position = 0
    parts.append(line[position:end])
    position = _BLANKS.match(line, end + 1).end()
    if line[position : position + 1] not in ("", ","):
        place = "" if number == opened else f" in line {number}"
        remedy = "close it earlier, or double a quotation mark that belongs to the text"
        raise UnusableError(f"{table} line {opened}: opens a quotation mark, and after the closing one{place} comes "
                            f"{one_line(line[position : position + 20])!r}; {remedy}")
    return "\n".join(parts).replace('""', '"'), line, position, number


def _lines(table, file):
    """Yields (number, line) of a text file, without line breaks. Refuses a line of gigabytes before it is in memory."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise UnusableError(f"{table} line {number}: has more than {_LONGEST_LINE} characters; give a table, one row a line")
        if "\0" in line:
            raise UnusableError(f"{table} line {number}: contains zero bytes, so it is UTF-16 or no text; save it as UTF-8")
        yield number, line.removesuffix("\n")


def _not_utf8(table, error):
    """Says where a file is not UTF-8. The error itself only knows the place in a buffer."""
    with open(table, "rb") as file:
        head = file.read(4)
        if head[:2] == b"PK":
            return f"{table}: is a spreadsheet or an archive, not a text; save it as comma-separated values in UTF-8"
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return f"{table}: is UTF-16; save it as UTF-8"
        file.seek(0)
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return f"{table} line {number}: contains the byte 0x{line[found.start]:02x} and is not UTF-8; save it as UTF-8"
    return f"{table}: is not UTF-8 ({error}); save it as UTF-8"


def nfc(text):
    """A text in the Unicode normal form C. A Mac may write é as two characters, and other systems as one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _any_capitals(text):
    return nfc(text).casefold()


class _Files:
    """Finds the image files that a table in `folder` names. Lists a folder only if a file in it is not found by its name."""

    def __init__(self, folder):
        self.folder, self._listings = folder or ".", {}

    def find(self, image):
        """The path of a file, which may be written with backslashes or in another Unicode normal form; empty if there is none."""
        path = os.path.join(self.folder, os.path.expanduser(image))
        if os.path.isfile(path) or (not path.isascii() and os.path.isfile(path := self._alike(path, nfc))):
            return path
        return self.find(image.replace("\\", "/")) if "\\" in image else ""

    def why_missing(self, image):
        """(what is wrong, remedy) for a file that `find` did not find."""
        path = os.path.join(self.folder, os.path.expanduser(image))
        if os.path.isdir(path):
            return f"names {path}, which is a folder", "give a path of an image file, or remove the row"
        image = image.replace("\\", "/")
        stems = dict.fromkeys((image, os.path.splitext(image)[0]))
        endings = ["", *IMAGE_FILES, *(ending.upper() for ending in IMAGE_FILES)]
        there = [stem + ending for stem in stems for ending in endings if self.find(stem + ending)]
        alike = self._alike(os.path.join(self.folder, os.path.expanduser(image)), _any_capitals)
        if not there and alike:
            there = [alike if os.path.isabs(image) else os.path.relpath(alike, self.folder)]
        remedy = f"there is {there[0]}: correct the path" if there else "give a path relative to the table's folder"
        return f"names {path}, and there is no such file", f"{remedy}, or remove the row"

    def _alike(self, path, alike):
        """The existing path whose parts are the same after the function `alike`; empty if there is none."""
        head, name = os.path.split(path)
        if not name or name in (".", ".."):
            return path if os.path.isdir(path) else ""
        folder = head if os.path.isdir(head or ".") else self._alike(head, alike)
        if (folder, alike) not in self._listings:
            try:
                names = sorted(os.listdir(folder or "."), reverse=True)
            except OSError:
                names = []
            self._listings[folder, alike] = {alike(name): name for name in names}
        found = self._listings[folder, alike].get(alike(name))
        return os.path.join(folder, found) if found else ""
