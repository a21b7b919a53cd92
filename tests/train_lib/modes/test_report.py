"""report.html, read by an HTML parser: complete, safe, consistent with the files of the workdir, made without TensorFlow."""

import base64
import html
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from helpers import ROOT
from PIL import Image

from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.cli import flags as flags_lib
from train_lib.modes.report import page as report
from train_lib.records.workdir import Workdir

HOSTILE = "<script>alert('1')</script>&\"$title{{ title }}{% if %}"
CLASSES = ["cat", HOSTILE, "dog"]
SECTIONS = ("curves", "epochs", "classes", "mistakes", "kernels", "batch", "speed", "repeat", "configuration", "environment")
VOID = {"meta", "img", "br", "link", "input"}


def png(value=0, size=4):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def write(folder, name, value):
    lines = value if isinstance(value, list) else None
    text = "".join(json.dumps(line) + "\n" for line in lines) if lines is not None else json.dumps(value)
    (folder / name).write_text(text)


def write_run(folder):
    """Writes by hand the workdir of a finished run of two epochs."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    values = config_lib.to_values(config_lib.from_values({
        "dataset": f"folder:{HOSTILE}", "model": "alexnet_mini", "epochs": 2.0, "augment": "flip", "preset": "tutorial"}))
    train = [{"kind": "train", "step": step, "epoch": step / 10, "loss": 3 - step / 10, "accuracy": step / 40,
              "learning_rate": 0.5} for step in range(2, 21, 2)]
    validation = [{"kind": "validation", "step": step, "epoch": step / 10, "examples": 10, "loss": 2.5, "accuracy": accuracy,
                   "top_5_accuracy": 1.0} for step, accuracy in ((10, 0.625), (20, 0.25))]
    test = {"kind": "test", "step": 10, "epoch": 1.0, "examples": 12, "loss": 1.25, "accuracy": 0.75, "top_5_accuracy": 1.0}
    write(folder, "metrics.jsonl", [*train[:5], validation[0], *train[5:], validation[1], test])
    write(folder, "timing.jsonl", [
        {"step": step, "seconds": 65.0, "train_seconds": 2.0, "images": 300, "images_per_second": 150.0,
         "data_wait_share": None if step == 2 else 0.25} for step in range(2, 21, 2)])
    write(folder, "config.json", values)
    write(folder, "result.json", {"status": "completed", "steps": 20, "epochs": 2.0, "best_step": 10, "seconds": 3725.0})
    about = {"devices": "CPU:0", "parameters": 12345, "image_shape": [4, 4, 3], "cpu": HOSTILE, "gpus": [],
             "settings": {"OMP_NUM_THREADS": "2", "XLA_FLAGS": "--x=1"}}
    write(folder, "environment.json", about)
    write(pictures, "evaluation.json", {
        "step": 10, "split": "test", "test_crops": 10, "examples": 12, "loss": 1.25, "accuracy": 0.75, "top_5_accuracy": 1.0,
        "class_names": CLASSES, "confusion_matrix": [[4, 0, 0], [2, 2, 0], [1, 0, 3]],
        "accuracy_per_class": dict(zip(CLASSES, (1.0, 0.5, None), strict=True))})
    write(pictures, "mistakes.json", {"step": 10, "mistakes": [{
        "true_class": HOSTILE, "image": base64.b64encode(png()).decode(),
        "predictions": [{"class": "cat", "probability": 0.875}, {"class": HOSTILE, "probability": 0.125}]}]})
    for name, value in (("batch-00000000", 1), ("kernels-00000010", 2), ("kernels-00000015", 3), ("kernels-00000020", 4)):
        (pictures / f"{name}.png").write_bytes(png(value))
    return folder


class Page(html.parser.HTMLParser):
    """A page as a browser reads it: its elements, and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], {}, []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        section = next((name for tag, name in self._open if tag == "section"), "header")
        if self._open and self._open[-1][0] != "style":
            self.text[section] = self.text.get(section, "") + data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def workdir(tmp_path):
    return Workdir(write_run(tmp_path / "run"))


def page_of(workdir):
    assert report.report(None, workdir) == 0
    return (workdir.path / "report.html").read_text()


def assert_self_contained(text):
    """The page contains nothing that a browser would fetch or run."""
    page = Page(text)
    assert "://" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, attributes in page.elements for name, value in attributes.items()
               if name == "href" and value.startswith("#")]
    assert set(targets) <= set(ids)
    return page


def test_the_page_is_complete_and_needs_no_other_file(workdir):
    text = page_of(workdir)
    page = assert_self_contained(text)
    assert [section["id"] for section in page.all("section")] == list(SECTIONS)
    assert len(page.all("h1")) == len(page.all("main")) == 1 and page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta")) and "prefers-color-scheme: dark" in text
    assert len(page.all("img")) == 4 and all(image["alt"] for image in page.all("img"))  # a mistake, kernels twice, a batch
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 6 and all(svg["aria-label"] for svg in charts)
    assert "No record" not in text and 'class="missing"' not in text


def test_the_page_shows_the_values_of_the_files(workdir):
    text = page_of(workdir)
    page = Page(text)
    flat = {name: " ".join(words.split()) for name, words in page.text.items()}
    for words in ("Completed. Step 20, epoch 2 of 2.", "75.00 %", "62.50 % step 10", "150 of the training steps", "1 h 02 min",
                  "12,345"):
        assert words in flat["header"], words
    assert "1 (best) 10 2.0000 25.00 % 2.5000 62.50 % 100.00 % 0.5" in flat["epochs"] and "2 20 1.0000" in flat["epochs"]
    assert "settings OMP_NUM_THREADS=2, XLA_FLAGS=--x=1" in " ".join(flat.values())
    assert "10 views" in flat["classes"] and f"{HOSTILE} 50.00 % cat 100.00 % dog -" in flat["classes"]
    assert f"{HOSTILE} for cat (2), dog for cat (1)" in flat["classes"]
    assert f"cat 88 % {HOSTILE} 12 %" in flat["mistakes"]
    sources = "".join(image["src"] for image in page.all("img"))
    assert [base64.b64encode(png(value)).decode() in sources for value in (1, 2, 3, 4)] == [True, True, False, True]
    assert "step 20" in flat["kernels"] and "step 10" in flat["kernels"] and "(flip)" in flat["batch"]
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert any("median 150" in label for label in labels) and any("median 25" in label for label in labels)
    assert HOSTILE in flat["environment"] and "4 x 4 x 3" in flat["environment"] and "--augment flip" in flat["configuration"]


def test_a_name_stays_text_everywhere(workdir):
    text = page_of(workdir)
    assert "<script" not in text and "alert('1')</script" not in text
    page = Page(text)
    for section in ("header", "classes", "mistakes", "repeat", "configuration", "environment"):
        assert "<script>" in page.text[section], section
    assert any(HOSTILE in image["alt"] for image in page.all("img"))
    assert any(HOSTILE in svg["aria-label"] for svg in page.all("svg"))


def test_a_class_name_may_contain_any_bytes(workdir):
    """It is the name of a folder. Bytes that are not UTF-8 come as lone surrogates, which no file can hold."""
    path = workdir.path / "pictures" / "evaluation.json"
    path.write_text(path.read_text().replace('"cat"', json.dumps(os.fsdecode(b"c\xe9"))))
    assert "c\\udce9" in page_of(workdir)


@pytest.mark.parametrize(("missing", "words"), [
    ("result.json", "No result yet: still running, or killed. Step 20"), ("timing.jsonl", "No record in timing.jsonl"),
    ("environment.json", "There is no environment.json"), ("config.json", "There is no config.json"),
    ("pictures/mistakes.json", "None was recorded"),
    ("pictures/evaluation.json", "--mode=evaluate"), ("pictures", "Drawn at the first evaluation"),
    ("validation", "There is no validation record"), ("everything", "--mode=evaluate")])
def test_the_page_names_what_is_missing(workdir, missing, words):
    records = [json.loads(line) for line in (workdir.path / "metrics.jsonl").read_text().splitlines()]
    if missing in ("validation", "everything"):
        write(workdir.path, "metrics.jsonl", [record for record in records if record["kind"] == "train"][:3])
    for path in list(workdir.path.iterdir()) if missing == "everything" else [workdir.path / missing]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists() and path.name != "metrics.jsonl":
            path.unlink()
    page = assert_self_contained(page_of(workdir))
    assert [section["id"] for section in page.all("section")] == list(SECTIONS)
    assert words in " ".join(page.text.values())


def test_missing_values_leave_gaps(workdir):
    """A diverging run has steps without a loss, and its first record may have no throughput."""
    write(workdir.path, "metrics.jsonl", [
        {"kind": "train", "step": 2, "epoch": 0.2, "loss": None, "accuracy": None, "learning_rate": 0.1, "skipped_steps": 2},
        {"kind": "validation", "step": 2, "epoch": 0.2, "loss": None, "accuracy": 0.0, "top_5_accuracy": None}])
    write(workdir.path, "timing.jsonl", [
        {"step": 2, "seconds": 1.0, "train_seconds": 0.0, "images": 0, "images_per_second": None, "data_wait_share": None}])
    page = assert_self_contained(page_of(workdir))
    assert "0.2 2 - - - 0.00 % - 0.1" in " ".join(page.text["epochs"].split())


def test_the_newest_evaluation_counts_and_at_equal_steps_the_one_of_mode_evaluate(workdir):
    found = json.loads((workdir.path / "pictures" / "evaluation.json").read_text())
    for step, wins in ((9, False), (10, True), (20, True)):
        write(workdir.path, "evaluation.json", found | {"step": step, "split": "another"})
        text = page_of(workdir)
        assert ("<code>another</code>" in text) == wins
        assert ("None was recorded" in text) == wins
    shutil.copy(workdir.path / "pictures" / "mistakes.json", workdir.path)  # of step 10; the evaluation is of step 20
    assert "None was recorded" in page_of(workdir)


def test_a_long_run_does_not_make_a_long_page(workdir):
    """With thousands of records, the table and the lines are thinned, but the best row stays."""
    records = [{"kind": "train", "step": step, "epoch": step / 100, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1}
               for step in range(1, 20001)]
    records += [{"kind": "validation", "step": step, "epoch": step / 100, "loss": 1.0, "accuracy": 0.9 if step == 777 else 0.5,
                 "top_5_accuracy": 1.0} for step in range(1, 1001)]
    write(workdir.path, "metrics.jsonl", records)
    (workdir.path / "result.json").unlink()
    text = page_of(workdir)
    assert len(text) < 600_000
    assert text.count('<th scope="row">') < 350 and "200 of 1000 rows" in text
    assert "7.77 (best) 777 " in " ".join(Page(text).text["epochs"].split())
    x, y = report.line(records[:20000], "step")
    assert len(x) == 400 and y[0] == np.mean(range(1, 51)) and x[-1] == pytest.approx(np.mean(range(19951, 20001)) / 100)


def parsed(arguments):
    flag_values = flags.FlagValues()
    flags_lib.define(flag_values)
    return config_lib.to_values(flags_lib.parse(["main.py", *arguments], flag_values))


@pytest.mark.parametrize("arguments", [
    ["--preset=quickstart"], ["--preset=quickstart", "--model=VGG16"],
    ["--preset=cifar10", "--model_options=lrn=true", "--augment=none", "--validation_split="],
    ["--preset=tutorial", "--model=VGG16", "--image_size=64", "--learning_rate=1e-05", "--nesterov"],
    ["--preset=imagenet", "--dataset=folder:a b/$x'y", "--epochs=2.5", "--dropout_rate=0.25"]])
def test_the_command_repeats_the_run(arguments):
    values = parsed(arguments)
    found = flags_lib.repeat_arguments(values)
    assert parsed(found) == values and len(found) <= len(arguments)


def test_the_command_undoes_what_the_preset_sets():
    """This preset sets a dropout rate, and the run had none."""
    values = config_lib.to_values(config_lib.from_values({"preset": "cifar10", "model": "alexnet_tower"}))
    found = flags_lib.repeat_arguments(values)
    assert values["dropout_rate"] is None and parsed(found) == values


@pytest.mark.parametrize("values", [{}, {"preset": "of another version"}, {"a_setting_of_another_version": 1}])
def test_no_command_is_shown_rather_than_a_wrong_one(values):
    assert flags_lib.repeat_arguments(values) is None


def test_the_command_on_the_page_works_in_a_shell(workdir):
    shown = next(part for part in Page(page_of(workdir)).text["repeat"].split("python main.py")[1:])
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {shown.split('With this')[0]}"], capture_output=True, text=True).stdout
    assert "--preset=tutorial" in words.splitlines() and f"--dataset=folder:{HOSTILE}" in words.splitlines()


@pytest.mark.parametrize(("name", "content"), [
    ("result.json", "{"), ("pictures/evaluation.json", "[]"), ("pictures/evaluation.json", '{"step": 1}'),
    ("metrics.jsonl", "no record\n"), ("pictures/mistakes.json", "\xff\x00")])
def test_a_damaged_file_is_named(workdir, name, content):
    (workdir.path / name).write_text(content)
    with pytest.raises(UnusableError, match=re.escape(str(workdir.path / name))) as error:
        report.report(None, workdir)
    assert "\n" not in str(error.value) and not (workdir.path / "report.html").exists()


@pytest.mark.parametrize(("name", "content"), [
    ("result.json", '{"status": []}'), ("result.json", '{"status": "completed", "steps": "x"}'),
    ("pictures/mistakes.json", '{"step": 10, "mistakes": [{}]}'),
    ("metrics.jsonl", '{"kind": "train", "step": 1, "epoch": 0.1, "loss": "x", "accuracy": 1}\n')])
def test_values_of_a_wrong_type_are_one_clear_line(workdir, name, content):
    (workdir.path / name).write_text(content)
    with pytest.raises(UnusableError, match="not what a run writes") as error:
        report.report(None, workdir)
    assert "\n" not in str(error.value)


def test_a_command_is_shown_only_if_it_is_known(workdir):
    for name in ("config.json", "run.flags"):
        (workdir.path / name).unlink(missing_ok=True)
    text = Page(page_of(workdir)).text["repeat"]
    assert "--preset" not in text and "--flagfile" not in text and "Neither config.json nor run.flags" in text


# Through main.py.


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_report_changes_no_other_file(workdir, main):
    """The workdir may belong to a run that still goes on, so the last line of a file may be half written."""
    with open(workdir.path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tr')
    before = snapshot(workdir.path)
    done = main("--mode=report", f"--workdir={workdir.path}")
    assert done.returncode == 0 and done.stdout == f"written: {workdir.path / 'report.html'}\n" and not done.stderr, done.stderr
    after = snapshot(workdir.path)
    assert after.pop(workdir.path / "report.html") and after == before


@pytest.mark.parametrize("kind", ["absent", "empty", "without records"])
def test_an_empty_run_has_no_report(tmp_path, main, kind):
    folder = tmp_path / "run"
    if kind != "absent":
        folder.mkdir()
    if kind == "without records":
        (folder / "metrics.jsonl").touch()
    done = main("--mode=report", f"--workdir={folder}")
    assert done.returncode == 3 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --workdir={folder}: holds no run with a record")
    assert folder.exists() == (kind != "absent") and not (folder / "report.html").exists()


def test_a_report_needs_neither_tensorflow_nor_global_state_of_matplotlib(workdir):
    lines = ["import sys, pathlib", "from train_lib.modes.report import page as report", "from train_lib.records import workdir",
             f"assert report.report(None, workdir.Workdir(pathlib.Path({str(workdir.path)!r}))) == 0",
             "assert not {'tensorflow', 'keras', 'tensorflow_datasets', 'matplotlib.pyplot'} & set(sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_an_error(workdir, tmp_path, width):
    assert width_in_a_browser(page_of(workdir), tmp_path, width) == width  # nothing is wider than the page


def width_in_a_browser(text, folder, width):
    """How wide a browser shows a page in a window of `width` pixels. Fails if it logs an error."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium")
    # Put the page in a frame, because a browser window cannot be as narrow as a phone.
    frame = f'<iframe width="{width}" height="2000" style="border: 0" srcdoc="{html.escape(text)}"></iframe>'
    script = "onload = () => document.title = frames[0].document.documentElement.scrollWidth"
    (folder / "page.html").write_text(f"<!DOCTYPE html><title></title><script>{script}</script>{frame}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
               "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([browser, *options, f"file://{folder / 'page.html'}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    return int(re.search(r"<title>(\d+)</title>", done.stdout)[1])
