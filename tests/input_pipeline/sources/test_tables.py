"""Tables as spreadsheets, scripts and people write them: every row is read as it was meant, or an error names its line."""

import csv
import io
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from source_files import encoded, picture

from input_pipeline import sources
from input_pipeline.common.errors import UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.images.loading import BadExamples
from input_pipeline.sources.csv import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images im/0.png to im/5.png."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "im").mkdir()
    for index in range(6):
        (folder / "im" / f"{index}.png").write_bytes(encoded(picture(index)))
    return folder


def read(folder, text, limit=0):
    """({line: (class, split)} of the table's rows, the lines of its bad examples)."""
    table = folder / "t.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    bad = BadExamples(limit)
    source = open_source(DataConfig(dataset=f"csv:{table}"), str(table), bad)
    rows = {}
    for split, examples in source.examples.items():
        for listed in examples:
            place, line = listed.where.split(" (")[0].rsplit(" line ", 1)
            assert place == str(table) and int(line) not in rows
            rows[int(line)] = source.class_names[listed.label], split
    return rows, sorted(int(where.rsplit(" ", 1)[1]) for where in bad.found)


def fault(folder, text, limit=0):
    """The error about a table, without the path of the table, which it must begin with."""
    with pytest.raises(UnusableError) as caught:
        read(folder, text, limit)
    message = str(caught.value)
    assert message.startswith(f"{folder / 't.csv'}") and "\n" not in message and UnusableError.exit_code == 3
    return message.removeprefix(f"{folder / 't.csv'}").removeprefix(" ")


WHOLE = "".join(f"im/{index}.png,{'ab'[index % 2]}\n" for index in range(6))


@pytest.mark.parametrize(("rows", "begin", "words"), [
    ('im/0.png,a\nim/1.png,"b\nim/2.png,a\n', "line 3: opens a quotation mark that is not closed", "close it"),
    ('im/0.png,a\nim/1.png,"b\nim/2.png,"a"\n', "line 3: opens a quotation mark", "in line 4 comes 'a\"'"),
    ('im/0.png,a\nim/1.png,"b\nim/2.png,a"\nim/3.png,b\n', "line 3: has a line break in its label", "close the quotation mark"),
    ('"im/0.png\n",a\n', "line 2: has a line break in its image", "remove the line break"),
    ('im/0.png,"a"b\n', "line 2: opens a quotation mark, and after the closing one comes 'b'", "double a quotation mark"),
    ('im/0.png,a"\n', 'line 2: has a quotation mark within its label a"', "double those inside"),
    ("im/0.png,a\nim/1.png,crane, machine\n", "line 3: has 3 fields, the header names 2", "quotation marks"),
    ("im/0.png,a,\n", "line 2: has 3 fields, the header names 2", "quotation marks"),
])
def test_a_row_that_is_divided_in_another_way_is_a_fault_of_the_table(folder, rows, begin, words):
    """Each of these used to change a class, or to swallow the rows that follow."""
    message = fault(folder, "image,label\n" + rows, limit=99)
    assert message.startswith(begin) and words in message and "max_bad_examples" not in message


def test_quoted_line_breaks_in_other_columns_count_as_lines_of_the_file(folder):
    """The line in a message is the one that an editor shows, where the row begins."""
    rows = 'note,image,label\n"two\nlines",im/0.png,a\n\n   \n"three\n\nlines",im/1.png,b\nx,im/2.png,\n'
    rows += '"6"" nail", im/3.png , "c ""d"", e" \n'
    assert read(folder, rows, limit=1) == ({2: ("a", "train"), 6: ("b", "train"), 10: ('c "d", e', "train")}, [9])


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_tables_of_any_system_with_or_without_a_last_line_break(folder, line_break):
    text = ("image,label\n" + WHOLE).rstrip("\n").replace("\n", line_break)
    expected = {index + 2: ("ab"[index % 2], "train") for index in range(6)}
    for content in (text, text + line_break, b"\xef\xbb\xbf" + text.encode()):
        assert read(folder, content) == (expected, [])


@pytest.mark.parametrize(("header", "words"), [
    ("image;label", "has no column image, its first line is image;label; it is separated by semicolons, and commas are needed"),
    ("image\tlabel", "it is separated by tabs, and commas are needed"),
    ("Image,label", "has no column image, but 'Image'; capitals and blanks matter: write image"),
    ("image,label ", "has no column label, but 'label '"), ("image,label,Split", "has no column split, but 'Split'"),
    ("image,label,SPLIT ", "has no column split, but 'SPLIT '"),
    ("file,class", "has no column image, its first line is file, class; the first line must name the columns"),
    ("im/0.png,a", "has no column image, its first line is im/0.png, a; "),
    ("image,name", "has no column label, its first line is image, name"),
    ("image,label,label", "has 2 columns label"), ("image,note,label,note", "has 2 columns note"),
    ("image,label,split,split", "has 2 columns split"), ('image,label,"a\nb', "line 1: opens a quotation mark"),
])
def test_a_header_that_does_not_name_the_columns_is_told_with_what_it_names(folder, header, words):
    """A column `Split` that is ignored would train on the test images."""
    assert words in fault(folder, f"{header}\n{WHOLE}")


def test_columns_without_a_name_are_ignored(folder):
    """The index that pandas writes, and the empty columns that spreadsheets append."""
    assert read(folder, ",image, label,,\n0,im/0.png,a,,\n1,im/1.png,b,,\n")[0] == {2: ("a", "train"), 3: ("b", "train")}


@pytest.mark.parametrize(("content", "words"), [
    (("image,label\n" + WHOLE).encode("utf-16"), "is UTF-16; save it as UTF-8"),
    (("image,label\n" + WHOLE).encode("utf-16-le"), "line 1: contains zero bytes, so it is UTF-16"),
    (("image,label\n" + WHOLE * 400 + "im/0.png,café\n").encode("latin-1"), "line 2402: contains the byte 0xe9 and is not UTF-8"),
    (b"PK\x03\x04\x14\x00\x06\x00\xff\xe9", "is a spreadsheet or an archive"),
    (b"\n \n", "is empty"), (b"\xef\xbb\xbf", "is empty"), (b"image,label\n\n\n", "contains no row, only a header"),
])
def test_what_is_no_table_in_utf8(folder, content, words):
    message = fault(folder, content)
    assert words in message and (": is empty" in message or ": contains no row" in message or "UTF-8" in message)


@pytest.mark.parametrize(("image", "words"), [
    ("im/1", "there is im/1.png"), ("im/1.jpg", "there is im/1.png"), ("im/1.png.JPG", "there is im/1.png"),
    ("IM/1.Png", "there is im/1.png"), ("im", "im, which is a folder"), ("im/9.png", "no such file; give a path relative"),
    ("im\\9.png", "no such file"), ("im\\1", "there is im/1.png"),
])
def test_a_missing_file_is_named_with_the_one_that_may_be_meant(folder, image, words):
    message = fault(folder, f"image,label\nim/0.png,a\n{image},b\n")
    assert message.startswith("line 3: names ") and words in message
    assert read(folder, f"image,label\nim/0.png,a\n{image},b\n", limit=1) == ({2: ("a", "train")}, [3])


def test_files_are_found_in_any_normal_form_and_with_backslashes(tmp_path):
    """A Mac writes é as two characters into the names of files, a spreadsheet as one into the table; Windows writes \\."""
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for index, name in enumerate((forms[0] + "0", forms[1] + "1", forms[0] + "2/" + forms[1])):
        (tmp_path / f"d{name}").parent.mkdir(exist_ok=True)
        (tmp_path / f"d{name}.png").write_bytes(encoded(picture(index)))
    rows = [f"d{other}{tail}.png,{label}" for other in forms for tail, label in (("0", "a"), ("1", "b"))]
    rows += [f"d{first}2{slash}{second}.png,c" for first in forms for second in forms for slash in "/\\"]
    found, bad = read(tmp_path, "image,label\n" + "\n".join(rows))
    assert bad == [] and [found[line][0] for line in range(2, 14)] == list("abab" + "c" * 8)
    source = sources.open_source(DataConfig(dataset=f"csv:{tmp_path / 't.csv'}"))
    for listed in source.examples["train"]:
        with open(listed.image, "rb") as file:
            assert file.read() == encoded(picture(listed.label))


def test_labels_in_two_normal_forms_are_one_class(folder):
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    rows, _ = read(folder, f"image,label\nim/0.png,caf{forms[0]}\nim/1.png,caf{forms[1]}\nim/2.png,tea\n")
    assert [rows[line][0] for line in (2, 3, 4)] == [f"caf{forms[0]}"] * 2 + ["tea"]


def test_splits_that_differ_in_capitals_are_named(folder):
    """--train_split=train would leave out the rows of Train."""
    message = fault(folder, "image,label,split\nim/0.png,a,train\nim/1.png,b,test\nim/2.png,b,Train\n")
    assert message.startswith("line 4: has the split Train, ") and "line 2 has train" in message


def test_a_class_that_no_row_of_train_has_is_told(folder, capsys):
    """Its output of the network is never trained; often it is a misspelled label."""
    rows, _ = read(folder, "image,label,split\nim/0.png,a,train\nim/1.png,b,train\nim/2.png,Bee,test\nim/3.png,a,test\n")
    assert len(rows) == 4 and capsys.readouterr().err.endswith("no row of train has the class Bee\n")
    read(folder, "image,label,split\nim/0.png,a,train\nim/1.png,b,train\nim/3.png,a,test\n")
    assert capsys.readouterr().err == ""


def reference_rows(text):
    """A second reading of the rules, one character after the other: yields (line, fields, loose) or (line, "", None), a fault."""
    place, line = 0, 1
    text = text if text.endswith("\n") else text + "\n"
    while place < len(text):
        begin, fields, loose, quoted = line, [], set(), False
        while not fields or text[place - 1] == ",":
            start = place
            while text[place] in " \t":
                place += 1
            if text[place] == '"':
                quoted, opened, value = True, line, ""
                place += 1
                while place < len(text) and (text[place] != '"' or text[place : place + 2] == '""'):
                    value += text[place]
                    line += text[place] == "\n"
                    place += 2 if text[place] == '"' else 1
                place += 1
                while place < len(text) and text[place] in " \t":
                    place += 1
                if place >= len(text) or text[place] not in ",\n":
                    yield opened, "", None
                    return
            else:
                place = min(text.find(mark, start) for mark in ",\n" if text.find(mark, start) >= 0)
                value = text[start:place]
                if '"' in value:
                    loose.add(len(fields))
            fields.append(value)
            place += 1
        line += 1
        if quoted or len(fields) > 1 or fields[0].strip():
            yield begin, fields, loose


def reference(text, columns):
    """(rows as `read` returns them, lines of bad examples, line of the fault that ends the reading or None)."""
    rows, bad = {}, []
    for line, fields, loose in list(reference_rows(text))[1:]:
        wanted = [columns.index(name) for name in ("image", "label", "split") if name in columns]
        if loose is None or len(fields) > len(columns):
            return rows, bad, line
        if any(number in loose or (number < len(fields) and "\n" in fields[number]) for number in wanted):
            return rows, bad, line
        values = {name: value.strip() for name, value in zip(columns, fields, strict=False)}
        split = values.get("split", "") if "split" in columns else "train"
        image = values.get("image", "")
        if image in ("im/0.png", "im/1.png", "im/2.png") and values.get("label") and split.isalnum():
            rows[line] = values["label"], split
        else:
            bad.append(line)
    return rows, bad, None


COLUMNS = (st.permutations(["image", "label", "split", "note"]).map(tuple)
           | st.sampled_from([("image", "label"), ("label", "x", "image")]))
VALUES = st.sampled_from(["im/0.png", "im/1.png", "im/2.png", "a", "ab", "train", "test", "é", "", " ", "a,b", 'a""b', "a\nb"])
PARTS = st.lists(VALUES | st.sampled_from(['"', ",", "\n", '","', '"\n', "\t", "\n\n"]), max_size=30).map("".join)


@st.composite
def tables(draw):
    """(columns, text) of tables that are mostly right; quoted or not, with blanks, missing and extra fields, loose marks."""
    columns, lines = draw(COLUMNS), []
    for _ in range(draw(st.integers(0, 6))):
        usual = {"image": st.sampled_from(["im/0.png", "im/1.png"]), "split": st.sampled_from(["train", "test"])}
        fields = [draw(usual.get(name, VALUES) | VALUES if draw(st.integers(0, 9)) == 0 else usual.get(name, st.just("ab")))
                  for name in columns]
        change = draw(st.integers(0, 12))
        fields = fields[:-1] if change == 0 else [*fields, "more"] if change == 1 else fields
        style = draw(st.sampled_from(["{}", '"{}"', ' "{}"\t', " {} "]))
        styles = [draw(st.sampled_from([style, "{}", '"{}"', '"{}'])) if change == 2 else style for _ in fields]
        lines.append(",".join(style.format(field) for style, field in zip(styles, fields, strict=True)))
    return columns, "\n".join([",".join(columns), *lines]) + draw(st.sampled_from(["", "\n"]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables() | st.tuples(COLUMNS, PARTS).map(lambda pair: (pair[0], ",".join(pair[0]) + "\n" + pair[1])))
@example((("image", "label"), 'image,label\nim/0.png,"a\nim/1.png,"b"\n'))
@example((("image", "label", "note"), 'image,label,note\nim/0.png,a,"x\nim/1.png,b,y"\nim/2.png,b,"z"'))
def test_never_a_row_too_many_or_too_few_without_an_error_that_names_its_line(folder, table):
    columns, text = table
    rows, bad, line = reference(text, columns)
    if line is not None:
        assert fault(folder, text, limit=10**6).startswith(f"line {line}: ")
    elif rows:
        assert read(folder, text, limit=10**6) == (rows, bad)
    else:
        assert "contains no row" in fault(folder, text, limit=10**6)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.text(st.sampled_from('ab,";é\'\t '), min_size=1).filter(str.strip),
                          st.sampled_from(["train", "test"]), st.text(st.sampled_from('ab,"\n;'))), min_size=1, max_size=8),
       st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]), st.sampled_from(["\n", "\r\n"]))
def test_what_the_csv_module_writes_is_read_as_it_was(folder, rows, quoting, line_break):
    """Also labels with commas, quotation marks and blanks, and notes of several lines."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=quoting, lineterminator=line_break)
    writer.writerows([("image", "label", "split", "note"), *((f"im/{row[0]}.png", *row[1:]) for row in rows)])
    found, bad = read(folder, file.getvalue().encode())
    assert bad == [] and [found[line] for line in sorted(found)] == [(label.strip(), split) for _, label, split, _ in rows]
