"""Input that somebody made to harm, or that a disk has spoiled: one clear line, no traceback, no hang, no memory used up.

Each test feeds a reader with mutations of what it reads in good times, found by hypothesis, in this process. The default run
tries some of each; `pytest -m slow` 10,000 in all.
"""

import contextlib
import copy
import functools
import io
import json
import pathlib
import resource
import shutil
import signal
import struct
import tempfile
import warnings
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import encoded, picture, write_csv

from input_pipeline import sources
from input_pipeline.common.errors import LONGEST_LINE, ExpectedError, one_line
from input_pipeline.config import DataConfig
from input_pipeline.images import decoding as augment
from input_pipeline.images import headers
from train_lib import config as config_lib
from train_lib.checkpoints.description import check_description
from train_lib.checkpoints.resume import is_finished, refuse_other_experiment
from train_lib.checkpoints.store import CheckpointStore, DamagedCheckpoint, _sha256, verify
from train_lib.cli import flags as flags_lib
from train_lib.records.run_log import RunLog
from train_lib.records.workdir import Workdir, open_workdir
from train_lib.state import PixelScaling, TrainState

MOST_MEGABYTES, MOST_SECONDS = 400, 20
FEW, ALL = 25, {"flags": 1400, "files": 1250, "images": 2400}
quiet = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
                 report_multiple_bugs=False)


def rounds(count):
    """The parameters of a test that is tried a few times by default and `count` times among the slow ones."""
    return pytest.mark.parametrize("examples", [FEW, pytest.param(count, marks=pytest.mark.slow)])


def on_alarm(*_):
    raise AssertionError(f"hangs: more than {MOST_SECONDS} s")


def used_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def harmless():
    """Context manager in which only expected failures may be raised. Each of them becomes one line."""
    before = used_megabytes()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    except (ExpectedError, DamagedCheckpoint, absl_flags.Error) as error:
        line = one_line(str(error))
        assert line.splitlines() == [line] and min(line) >= " " and len(line) < 10 * LONGEST_LINE
        line.encode()
        if isinstance(error, ExpectedError):
            assert error.exit_code in (2, 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert used_megabytes() - before < MOST_MEGABYTES


def run_rounds(count, strategy, function):
    """Calls `function` with `count` values of a strategy."""
    settings(quiet, max_examples=count)(given(strategy)(function))()


# Bytes: flipped, cut, doubled, overwritten, in any places.
KINDS = ("flip", "cut", "insert", "overwrite", "repeat", "drop")
MUTATION = st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.binary(max_size=9))
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=4)


def mutated(content, mutations):
    for kind, where, data in mutations:
        at = int(where * len(content))
        if kind == "flip" and at < len(content):
            bit = 1 << (data[0] % 8 if data else 0)
            content = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        content = {
            "flip": lambda c=content: c, "cut": lambda c=content, at=at: c[:at],
            "insert": lambda c=content, at=at, data=data: c[:at] + data + c[at:],
            "overwrite": lambda c=content, at=at, data=data: c[:at] + data + c[at + len(data) :],
            "repeat": lambda c=content, at=at, data=data: c[:at] + c[at : at + 50] * (1 + 50 * len(data)) + c[at:],
            "drop": lambda c=content, at=at, data=data: c[:at] + c[at + len(data) :],
        }[kind]()
    return content


# JSON: any value in the place of any other.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=20),
    st.sampled_from(("step", "1", "../x", "\x00", "\x1b[31m", "x\n--flagfile=/etc/passwd", "ns:data", "~nobody/x", "9" * 5000,
                     "/" + "x" * 5000, "train[:10%]", -1, 2**63, 1e308, 10**30)))
JSON = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=6)
EDITS = st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(("set", "drop", "add")), JSON),
                 min_size=1, max_size=3)


def edited(value, edits):
    """A JSON value with some of its inner values replaced, removed or joined by others."""
    value = json.loads(json.dumps(value))
    for path, kind, new in edits:
        new = copy.deepcopy(new)
        inside = value
        for number in path[:-1]:
            children = list(inside.values()) if isinstance(inside, dict) else inside
            deeper = [child for child in children if isinstance(child, (dict, list)) and child]
            if deeper:
                inside = deeper[number % len(deeper)]
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not keys:
            continue
        key = keys[path[-1] % len(keys)]
        if kind == "add" and isinstance(inside, dict):
            inside[str(new)[:20]] = new
        elif kind == "drop":
            del inside[key]
        else:
            inside[key] = new
    return value


OTHERS = (b"", b"[" * 200_000, b'{"a":' * 50_000, b"\xff\xfe", bytes(1000), b"9" * 9999)
FILE = st.one_of(st.tuples(st.just("bytes"), MUTATIONS), st.tuples(st.just("json"), EDITS), st.tuples(st.just("any"), JSON),
                 st.tuples(st.just("other"), st.sampled_from(OTHERS)))


def content_of(good, change):
    """The bytes of a JSON file, changed."""
    kind, what = change
    if kind == "other":
        return what
    if kind == "bytes":
        return mutated(json.dumps(good, indent=1).encode(), what)
    return json.dumps(edited(good, what) if kind == "json" else what).encode()


@pytest.fixture
def folder():
    """A folder that is quick to write to and need not be kept."""
    path = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None))
    yield path
    shutil.rmtree(path)


# Flags.

NAMES = [field.name for _, field in config_lib.leaves()]
VALUE = st.one_of(
    st.text(max_size=12), st.text(st.characters(exclude_categories=()), max_size=4), st.integers().map(str), st.floats().map(str),
    st.sampled_from(("", "9" * 5000, "1e999", "-1", "1:2", "true", "train[:10%]+test", "csv:", "a:b", "~nobody", "lrn=", "nan",
                     "width=1e9", "crop,,flip", "x" * 9000, "\x00", "\x1b[2J", "٣", "0x10", "1_000")))
ARGUMENT = st.one_of(
    st.tuples(st.sampled_from(("--", "-", "--no")), st.sampled_from(NAMES), st.sampled_from(("=", "", " ")), VALUE).map("".join),
    st.tuples(st.sampled_from(NAMES), VALUE).map(lambda pair: f"--{pair[0]}={pair[1]}"),
    st.sampled_from(("--flagfile=/dev/zero", "--flagfile=/nowhere", "--flagfile", "--flagfile=", "--", "--undefok=x")), VALUE)


def parse(*arguments):
    values = absl_flags.FlagValues()
    flags_lib.define(values)
    return flags_lib.parse(["main.py", *arguments], values)


@rounds(ALL["flags"])
def test_command_lines(examples):
    """What is accepted can be written down as run.flags, and comes back as the same configuration."""
    def check(arguments):
        with harmless():
            config = parse(*arguments)
            with tempfile.NamedTemporaryFile("w", suffix=".flags", encoding="utf-8") as file:
                file.write(flags_lib.to_flagfile(config))
                file.flush()
                again = parse(f"--flagfile={file.name}")
            assert config_lib.to_values(again) == config_lib.to_values(config) | {"workdir": None}

    run_rounds(examples, st.lists(ARGUMENT, min_size=1, max_size=4), check)


FLAGFILE = flags_lib.to_flagfile(config_lib.ExperimentConfig()).encode()


@rounds(ALL["files"])
def test_flagfiles(examples, folder):
    def check(mutations):
        (folder / "run.flags").write_bytes(mutated(FLAGFILE, mutations))
        with harmless():
            parse(f"--flagfile={folder / 'run.flags'}")

    run_rounds(examples, MUTATIONS, check)


# What lies in a workdir.

VALUES = config_lib.to_values(config_lib.from_values({"model": "alexnet_mini", "model_options": "dense_units=32"}))


@rounds(ALL["files"])
def test_config_and_result(examples, folder):
    """--mode=evaluate takes its settings from somebody's config.json."""
    def check(change):
        (folder / "config.json").write_bytes(content_of(VALUES, change))
        (folder / "result.json").write_bytes(content_of({"status": "completed", "steps": 3}, change))
        with harmless():
            result = Workdir(folder).read_result()
            assert result is None or isinstance(result, dict)
            config = parse("--mode=evaluate", f"--workdir={folder}")
            assert config.general.workdir == str(folder)

    run_rounds(examples, FILE, check)


RECORDS = [{"kind": "train", "step": step, "epoch": step / 9, "loss": 2.5, "accuracy": 0.1} for step in range(2, 9, 2)]
TIMINGS = [{"step": step, "seconds": 1.5, "train_seconds": 1.0, "images": 64, "images_per_second": 64.0}
           for step in range(2, 9, 2)]


@rounds(ALL["files"])
def test_records(examples, folder):
    """metrics.jsonl and timing.jsonl, through all that a resume does with them."""
    def lines_of(records, change):
        kind, what = change
        if kind == "bytes":
            return mutated(b"".join(json.dumps(record).encode() + b"\n" for record in records), what)
        return b"".join(content_of(record, change).replace(b"\n", b"") + b"\n" for record in records)

    def check(change):
        (folder / "metrics.jsonl").write_bytes(lines_of(RECORDS, change))
        (folder / "timing.jsonl").write_bytes(lines_of(TIMINGS, change))
        with harmless():
            log = RunLog(Workdir(folder), 6, lambda line: pytest.fail(line))
            assert all(record["step"] <= 6 for record in [*log.metrics.read(), *log.timing.read()])
            log.add_metrics("train", 8, 0.5, {"loss": 1.0})
            log.flush()
            log._close_events()

    run_rounds(examples, FILE, check)


# A checkpoint from elsewhere, whose manifest agrees with what somebody put into it.

PIXELS = PixelScaling(np.zeros(3), np.ones(3))
TENSORS = {"model/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), **PIXELS.tensors()}
DESCRIPTION = {
    "config": VALUES | {"workdir": None}, "class_names": ["cat", "dog"], "image_shape": [32, 32, 3], "last_step": 90, "data": {},
    "progress": TrainState(None, None, None, step=7).progress(),
}


def use(folder):
    """All that is done with a checkpoint before a network is built."""
    checkpoint = verify(folder)
    check_description(checkpoint)
    config = config_lib.from_values(VALUES)
    refuse_other_experiment(config, checkpoint)
    is_finished(config, checkpoint, {"status": "completed"})
    TrainState(None, None, None).set_progress(checkpoint.description["progress"])
    PixelScaling.from_tensors(checkpoint.tensors("pixels/"), folder)
    for tensor in checkpoint.evaluated_weights().values():
        assert isinstance(tensor, np.ndarray) and tensor.dtype != object


@rounds(ALL["files"])
def test_checkpoints(examples, folder):
    store = CheckpointStore(folder)
    store.save(7, TENSORS, DESCRIPTION, False)
    checkpoint = folder / "step-00000007"
    use(checkpoint)
    good = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    manifest = json.loads(good["manifest.json"])

    def check(args):
        name, change, vouched = args
        for other, content in good.items():
            (checkpoint / other).write_bytes(content)
        if name == "manifest.json":
            (checkpoint / name).write_bytes(content_of(manifest, change))
        elif name == "progress.json":
            (checkpoint / name).write_bytes(content_of(DESCRIPTION, change))
        else:
            mutations = change[1] if change[0] == "bytes" else [("overwrite", 0.3, b"\x7f\xff")]
            (checkpoint / name).write_bytes(mutated(good[name], mutations))
        if vouched and name != "manifest.json":
            entry = {"bytes": (checkpoint / name).stat().st_size, "sha256": _sha256(checkpoint / name)}
            (checkpoint / "manifest.json").write_text(json.dumps({"step": 7, "files": manifest["files"] | {name: entry}}))
        with harmless():
            use(checkpoint)

    run_rounds(examples, st.tuples(st.sampled_from(sorted(good)), FILE, st.sampled_from((True, True, False))), check)


# Data.


def npy(descr="'|u1'", shape="(30, 8, 8, 3)", data=bytes(30 * 8 * 8 * 3), version=b"\x01\x00", length=None):
    """An .npy file as NumPy writes it, each part of which may lie."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", size) + text + data


LABELS = bytes((0, 1)) * 15


def npz(path, images, labels, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        arrays = {"x_train": images, "y_train": labels, "x_test": npy(), "y_test": npy(shape="(30,)", data=LABELS)}
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)


LIES = st.fixed_dictionaries({}, optional={
    "descr": st.sampled_from(("'|O'", "'<U999999999'", "'|V1000000000'", "[('a', '<i8', (9999999,))]", "'<f8'", "'|u1'", "5",
                              "None", "'M8[ns]'", "[" * 150 + "]" * 150, "-" * 900 + "1", "'|S0'", "'|b1'", "''")),
    "shape": st.sampled_from(("(30, 8, 8, 3)", "(10**12, 8, 8, 3)", "(1000000000000, 8, 8, 3)", "(-30, -8, 8, 3)", "(30,)", "()",
                              "(0, 8, 8, 3)", "(True,)", "30", "(30, 0, 0, 3)", "(4294967296, 4294967296, 4294967296)",
                              "(" * 3000)),
    "data": st.sampled_from((b"", bytes(30), LABELS, bytes(10_000))),
    "version": st.sampled_from((b"\x02\x00", b"\x03\x00", b"\x09\x00")),
    "length": st.sampled_from((0, 1, 9000, 65535))})


@rounds(ALL["files"])
def test_npz_files(examples, folder):
    """Headers that claim terabytes, a bomb of zeros, a file with any byte changed. Nothing is unpickled."""
    path = folder / "data.npz"
    npz(path, npy(), npy(shape="(30,)", data=LABELS))
    good = path.read_bytes()
    source = sources.open_source(DataConfig(dataset=f"npz:{path}"))
    assert source.split_sizes() == {"train": 30, "test": 30}

    def check(args):
        images, labels, compression, mutations = args
        npz(path, npy(**images), npy(**{"shape": "(30,)", "data": LABELS} | labels), compression)
        if mutations:
            path.write_bytes(mutated(good if not images and not labels else path.read_bytes(), mutations))
        with warnings.catch_warnings(), harmless():
            warnings.simplefilter("ignore")
            opened = sources.open_source(DataConfig(dataset=f"npz:{path}"))
            opened.num_examples("train", "train_split")

    compressions = st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    run_rounds(examples, st.tuples(LIES, LIES, compressions, st.one_of(st.just([]), MUTATIONS)), check)


@rounds(ALL["files"])
def test_tables(examples, folder):
    good = write_csv(folder, count=4).read_bytes()
    numbers = good.replace(b"cat", b"0").replace(b"dog", b"1").replace(b"owl", b"2")
    texts = (b'"', b",", b"\n", b"\r", b"\x00", b"9" * 5000, b"-1", "٣".encode(), b"images/000.png", b"train", b"\xef\xbb\xbf",
             b"x" * 200_000, b"~nobody/x", b"../" * 2000, b"/dev/zero", b"label,image\n")
    parts = st.lists(st.sampled_from(texts), max_size=6)

    def check(args):
        start, mutations, more = args
        (folder / "table.csv").write_bytes(mutated(start, mutations) + b"".join(more))
        with harmless():
            opened = sources.open_source(DataConfig(dataset=f"csv:{folder / 'table.csv'}", max_bad_examples=3))
            opened.num_examples("train", "train_split")

    run_rounds(examples, st.tuples(st.sampled_from((good, numbers)), MUTATIONS, parts), check)


@functools.cache
def images():
    from PIL import Image

    rgb = Image.fromarray(picture(7, (9, 7)))
    kinds = [encoded(rgb, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")] + [encoded(rgb, "WEBP", lossless=True)]
    return [*kinds, encoded(rgb, "GIF", save_all=True, append_images=[Image.fromarray(picture(8, (9, 7)))])]


@rounds(ALL["images"])
def test_images(examples):
    """The size by the header, and where it is allowed TensorFlow's decoder."""
    def check(args):
        number, mutations = args
        content = mutated(images()[number % len(images())], mutations)
        with harmless():
            reason = headers.check(content)
            assert isinstance(reason, str)
            if not reason:
                height, width = headers.read_size(io.BytesIO(content))
                assert 0 < height * width <= headers.MAX_PIXELS
                with contextlib.suppress(tf.errors.OpError):
                    assert augment.decode(tf.constant(content)).dtype == np.uint8

    run_rounds(examples, st.tuples(st.integers(0, 99), MUTATIONS), check)


# What fuzzing, or thought, has found; each was a traceback, a hang or worse.


def line_of(function, *arguments, **more):
    """The line that a user gets."""
    with pytest.raises((ExpectedError, absl_flags.Error)) as caught:
        function(*arguments, **more)
    return one_line(str(caught.value))


@pytest.mark.parametrize(("arguments", "words"), [
    (["--" + "x" * 3000 + "=1"], "no such flag"),  # absl: RecursionError
    (["--nodebug=false"], "--nodebug=false does not take an argument"),  # absl: ValueError
    (["--flagfile=/dev/zero"], "--flagfile=/dev/zero: cannot be read (is no plain file)"),  # reading it would never end
    (["--flagfile=/nowhere"], "--flagfile=/nowhere: cannot be read"),
    (["--checkpoint=" + "9" * 5000], "give best, latest"),  # ValueError: int() of more than 4,300 digits
    (["--profile_steps=1:" + "9" * 5000], "give START:STOP"),
    (["--dataset=namespace:data"], "bring their own program"),  # TFDS downloads it and runs it
    (["--dataset=huggingface:data"], "bring their own program"),
    (["--data_dir=a\n--seed=5"], "without control characters"),  # a second line in run.flags
])
def test_command_lines_that_once_ended_in_a_traceback(arguments, words):
    assert words in line_of(parse, *arguments)


def test_versions_of_tfds_are_no_programs():
    for name in ("mnist:3.0.1", "mnist:3.*.*", "ns/config:1.0.0", "cifar10"):
        assert parse(f"--dataset={name}").data.dataset == name


def test_a_flagfile_names_no_other(folder):
    """Each twice the next, thirty of them, and absl is busy for years."""
    (folder / "run.flags").write_text(f"--seed=1\n--flagfile={folder / 'other.flags'}\n")
    assert "names another flagfile" in line_of(parse, f"--flagfile={folder / 'run.flags'}")


@pytest.mark.parametrize(("text", "words"), [
    ("[" * 100_000, "nested too deeply"), (json.dumps({"epochs": 10**400}), "at most 9223372036854775807"),
    (json.dumps({"data_dir": "a\n--seed=5"}), "control characters"), ("9" * 5000, "digits"),
    (" " * (2**24 + 1), "has 16777217 bytes"), (json.dumps({"dataset": "namespace:data"}), "bring their own program"),
])
def test_a_config_from_elsewhere(folder, text, words):
    (folder / "config.json").write_text(text)
    line = line_of(parse, "--mode=evaluate", f"--workdir={folder}")
    assert line.startswith(f"{folder / 'config.json'}: ") and words in line


@pytest.mark.parametrize("path", ["~nobody_of_that_name/x", "x" * 300, "/" + "x/" * 3000])
def test_paths_that_no_file_system_takes(path):
    """pathlib raises RuntimeError for a home that nobody has, and OSError for a name that is too long."""
    for kind in ("folder", "npz", "csv", "tfrecord"):
        assert line_of(sources.open_source, DataConfig(dataset=f"{kind}:{path}")).startswith(f"--dataset={kind}:{path[:50]}")
    config = config_lib.from_values({"init_from": path})
    assert line_of(open_workdir, config).startswith(f"--init_from={path[:50]}")
    assert Workdir(path).read_result() is None


def test_a_name_out_of_a_foreign_file_is_shown_in_one_line(folder):
    """Colours, line feeds and a megabyte of it end on somebody's terminal."""
    np.savez(folder / "a.npz", **{"x\x1b[31m\nerror: all is lost" + "x" * 60_000: np.zeros(3)})
    line = line_of(sources.open_source, DataConfig(dataset=f"npz:{folder / 'a.npz'}"))
    assert "\\x1b[31m\\nerror" in line and "\x1b" not in line and "\n" not in line and len(line) < 2 * LONGEST_LINE


def test_a_record_of_another_form_is_named(folder):
    bad = ('{"kind": "train", "step": "3", "epoch": 0.1}', '{"kind": 5, "step": 3, "epoch": 0.1}',
           '{"kind": "train", "step": true, "epoch": 0.1}', '{"kind": "train", "step": 3}', "[]" + " " * 70_000)
    for line in bad:
        (folder / "metrics.jsonl").write_text(f'{{"kind": "train", "step": 1, "epoch": 0.1}}\n{line}\n')
        message = line_of(RunLog, Workdir(folder), 9, lambda line: None)
        assert message.startswith(f"{folder / 'metrics.jsonl'}: line 2 is not a record")


@pytest.mark.parametrize(("change", "words"), [
    (lambda about: about.clear(), "class_names"), (lambda about: about.update(class_names=[1]), "class_names"),
    (lambda about: about.update(image_shape=[10**9, 10**9, 3]), "image_shape"),
    (lambda about: about["config"].clear(), "config"), (lambda about: about["config"].update(epochs="many"), "--epochs=many"),
    (lambda about: about["progress"].pop("totals"), "progress"), (lambda about: about["progress"].update(step=8), "progress"),
    (lambda about: about["progress"]["judgement"].update(best_step="x"), "progress"),
    (lambda about: about.pop("last_step"), "last_step"),
])
def test_a_checkpoint_that_vouches_for_a_description_of_another_form(folder, change, words):
    about = json.loads(json.dumps(DESCRIPTION))
    change(about)
    CheckpointStore(folder).save(7, TENSORS, about, False)
    line = line_of(use, folder / "step-00000007")
    assert line.startswith(f"{folder / 'step-00000007' / 'progress.json'}: ") and words in line


@pytest.mark.parametrize("missing", ["pixels/offset", "pixels/scale"])
def test_a_checkpoint_without_its_scaling_of_pixels(folder, missing):
    CheckpointStore(folder).save(7, {name: value for name, value in TENSORS.items() if name != missing}, DESCRIPTION, False)
    assert missing in line_of(use, folder / "step-00000007")
