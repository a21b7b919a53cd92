"""Means, evaluation_files and record files against NumPy and hand-computed cases."""

import dataclasses
import json
import math
import os
import warnings

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from train_lib.metrics import SplitTotals, TrainTotals
from train_lib.records.json_lines import JsonLines

# Training steps.


def steps(count, seed=0):
    """Reports of `count` steps: float32 losses and accuracies, most of them finite."""
    generator = np.random.default_rng(seed)
    finite = generator.random(count) > 0.2
    losses = np.where(finite, generator.random(count) * 1000, np.nan).astype(np.float32)
    return {"loss": losses, "accuracy": generator.random(count).astype(np.float32)}, finite


def test_train_means_in_numbers():
    totals = TrainTotals()
    metrics = {"loss": np.array([1.0, 2.0, np.nan, 6.0]), "accuracy": np.array([0.5, 0.25, 1.0, 0.75])}
    totals.add(metrics, np.array([True, True, False, True]))
    assert totals.values() == {"loss": 3.0, "accuracy": 0.5, "skipped_steps": 1}


def test_train_means_agree_with_numpy():
    metrics, finite = steps(500)
    metrics["another"] = metrics["accuracy"] ** 2
    totals = TrainTotals()
    totals.add(metrics, finite)
    means = totals.values()
    for name, values in metrics.items():
        assert means[name] == pytest.approx(values[finite].astype(np.float64).mean(), rel=1e-12)
    assert means["skipped_steps"] == (~finite).sum()


@pytest.mark.parametrize("seed", range(5))
def test_train_means_do_not_depend_on_how_the_steps_are_cut(seed):
    """Bit for bit: --steps_per_loop, a checkpoint or a kill in the middle of a record must not change metrics.jsonl."""
    metrics, finite = steps(200, seed)
    whole = TrainTotals()
    whole.add(metrics, finite)
    cut = TrainTotals()
    borders = [0, *sorted(np.random.default_rng(seed).integers(0, 201, 9).tolist()), 200]
    for start, stop in zip(borders, borders[1:], strict=False):
        cut.add({name: values[start:stop] for name, values in metrics.items()}, finite[start:stop])
        cut = TrainTotals(**json.loads(json.dumps(dataclasses.asdict(cut))))
    assert cut == whole and cut.values() == whole.values()


def test_a_metric_may_be_a_sum_a_maximum_the_last_value_or_a_function_of_others():
    reductions = {"a": "mean", "b": "sum", "c": "max", "d": "last", "e": lambda record: record["b"] / record["a"]}
    totals = TrainTotals(sums={})
    for values, finite in (([-3.0, 100.0, -1.0], [True, False, True]), ([-2.0], [True])):
        totals.add({name: np.array(values) for name in "abcd"}, np.array(finite), reductions)
        totals = TrainTotals(**json.loads(json.dumps(dataclasses.asdict(totals))))  # a resume in the middle
    assert totals.values(reductions) == {"a": -2.0, "b": -6.0, "c": -1.0, "d": -2.0, "e": 3.0, "skipped_steps": 1}
    nothing = TrainTotals(sums={})
    nothing.add({"a": np.array([1.0])}, np.array([False]), reductions)
    assert nothing.values(reductions) == {"a": None, "e": None, "skipped_steps": 1}


def test_a_metric_that_is_new_in_the_middle_of_a_record_waits_for_the_next():
    """A resumed run whose code has a new metric would divide its sum by steps that did not have it."""
    totals = TrainTotals()
    totals.add({"loss": np.array([1.0, 3.0])}, np.array([True, True]))
    totals.add({"loss": np.array([5.0]), "new": np.array([4.0])}, np.array([True]))
    assert totals.values() == {"loss": 3.0, "accuracy": 0.0}


def test_train_means_of_nothing_and_of_skipped_steps_alone():
    assert TrainTotals().values() == {"loss": None, "accuracy": None}
    totals = TrainTotals()
    totals.add({"loss": np.array([np.nan, np.inf]), "accuracy": np.array([0.1, 0.2])}, np.array([False, False]))
    assert totals.values() == {"loss": None, "accuracy": None, "skipped_steps": 2}


# A split.


def totals_of(logits, labels, weights=None, batch=7):
    totals = SplitTotals(logits.shape[1])
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    for start in range(0, len(labels), batch):
        rows = slice(start, start + batch)
        totals.add(logits[rows], labels[rows], weights[rows])
    return totals


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 10, 1000])
@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_a_split_agrees_with_brute_force(classes, batch):
    """One example after the other, in Python; padding rows hold rubbish that must count nowhere."""
    generator = np.random.default_rng(classes)
    logits = (generator.normal(size=(120, classes)) * 5).astype(np.float32)
    labels = generator.integers(0, classes, 120).astype(np.int32)
    weights = (generator.random(120) > 0.3).astype(np.float32)
    logits[weights == 0] = 1e30
    loss, right, top_5, confusion = 0.0, 0, 0, np.zeros((classes, classes), int)
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights, strict=True):
        if weight:
            loss += math.log(math.fsum(math.exp(value - row[label]) for value in row))
            ranking = sorted(range(classes), key=lambda index: -row[index])
            right += ranking[0] == label
            top_5 += label in ranking[:5]
            confusion[label, ranking[0]] += 1
    examples = int(weights.sum())

    totals = totals_of(logits, labels, weights, batch)
    summary = totals.summary()
    assert summary["examples"] == examples
    assert summary["loss"] == pytest.approx(loss / examples, rel=1e-12, abs=1e-15)
    assert summary["accuracy"] == right / examples and summary["top_5_accuracy"] == top_5 / examples
    np.testing.assert_array_equal(totals.confusion, confusion)
    for index, accuracy in enumerate(totals.accuracy_per_class()):
        of_class = confusion[index].sum()
        assert accuracy == (confusion[index, index] / of_class if of_class else None)


def test_a_split_agrees_with_tensorflow():
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(200, 20)).astype(np.float32)
    labels = generator.integers(0, 20, 200).astype(np.int32)
    summary = totals_of(logits, labels).summary()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits.astype(np.float64))
    assert summary["loss"] == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-12)
    assert summary["top_5_accuracy"] == np.mean(tf.math.in_top_k(labels, logits, 5).numpy())


def test_a_split_does_not_depend_on_its_batches():
    generator = np.random.default_rng(4)
    logits, labels = generator.normal(size=(100, 10)).astype(np.float32), generator.integers(0, 10, 100)
    counts = [{**totals_of(logits, labels, batch=batch).summary(), "loss": None} for batch in (1, 3, 100)]
    assert counts[0] == counts[1] == counts[2]


def test_fewer_than_six_classes_are_all_in_the_top_5():
    logits = np.array([[3.0, 2, 1], [1, 2, 3]], np.float32)
    assert totals_of(logits, np.array([2, 0])).summary()["top_5_accuracy"] == 1.0


def test_huge_logits_do_not_overflow():
    """exp(1e38) is not a number to work with: the loss is the difference of the logits, 2e38, and log(2) between equals."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        huge = totals_of(np.array([[1e38, -1e38]], np.float32), np.array([1]))
        equal = totals_of(np.array([[3e38, 3e38]], np.float32), np.array([1]))
        low = totals_of(np.array([[-3e38, -3e38]], np.float32), np.array([0]))
    assert huge.summary()["loss"] == pytest.approx(2e38, rel=1e-6)
    assert equal.summary()["loss"] == low.summary()["loss"] == pytest.approx(math.log(2), rel=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["label", "another", "all"])
def test_logits_that_are_not_finite_are_never_right(bad, where):
    """argmax of NaN is 0: a network that has diverged would be right for every example of class 0."""
    logits = np.tile(np.arange(6, dtype=np.float32)[::-1], (6, 1))
    labels = np.array([0, 0, 0, 1, 2, 0])
    for row in (1, 3):
        columns = {"label": labels[row], "another": 5, "all": slice(None)}[where]
        logits[row, columns] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a RuntimeWarning would be a riddle to a user
        totals = totals_of(logits, labels)
    summary = totals.summary()
    assert summary["examples"] == 6 and math.isnan(summary["loss"])
    assert summary["accuracy"] == 3 / 6  # rows 0, 2 and 5
    assert summary["top_5_accuracy"] == 4 / 6  # and row 4
    assert totals.accuracy_per_class() == [3 / 4, 0.0, 0.0, None, None, None]
    assert totals.confusion.sum() == 4 and totals.confusion[2, 0] == 1


def test_minus_infinity_is_a_class_ruled_out():
    totals = totals_of(np.array([[0, -np.inf, 0], [0, -np.inf, 1]], np.float32), np.array([0, 2]))
    assert totals.summary()["loss"] == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2, rel=1e-14)
    assert totals.summary()["accuracy"] == 1.0


def test_a_batch_of_padding_alone_counts_nowhere():
    """With more replicas than examples are left, a whole share of the last batch is padding."""
    totals = totals_of(np.array([[1.0, 0]], np.float32), np.array([0]))
    before = totals.summary()
    totals.add(np.full((4, 2), np.nan, np.float32), np.zeros(4, np.int32), np.zeros(4, np.float32))
    assert totals.summary() == before


# Record files.


def test_records_come_back_in_full_precision(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    records = [{"step": step, "loss": value} for step, value in enumerate([1 / 3, 0.1, 5e-324, 1.7976931348623157e308, None])]
    for record in records:
        lines.append(record)
    assert lines.read() == records
    lines.keep(lambda record: True)
    assert lines.read() == records


def test_each_record_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(3):
        lines.append({"step": step})
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1] == {"step": step}


def test_what_json_cannot_hold_becomes_null(tmp_path):
    """Python writes NaN and Infinity, which no other JSON reader takes."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1, "loss": math.nan, "a": math.inf, "b": np.float64("-inf"), "c": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "a": null, "b": null, "c": 0.5}\n'


def test_no_file_is_no_record(tmp_path):
    assert JsonLines(tmp_path / "metrics.jsonl").read() == []


@pytest.mark.parametrize("half", [b'{"kind": "tr', b"{", b'{"step": 3}', b"\x00\x00\x00", b'{"name": "gr\xc3'])
def test_a_half_written_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path, half):
    """A kill may cut a line anywhere, in the middle of a character too."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + half)
    lines = JsonLines(path, {"step": int})
    assert lines.read() == [{"step": 1}, {"step": 2}]
    lines.keep(lambda record: record["step"] <= 2)
    lines.append({"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_keep_drops_the_rest_and_leaves_no_temporary_file(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(5):
        lines.append({"step": step, "kind": "test" if step == 1 else "train"})
    lines.keep(lambda record: record["step"] <= 3 and record["kind"] != "test")
    assert [record["step"] for record in lines.read()] == [0, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "garbage",
    [b"hello", b"\xff\xfe", b"{", b"5", b"null", b"[]", b'{"kind": "train"}', b'{"step": 1}{"step": 2}', b"[" * 100_000])
def test_garbage_in_the_middle_is_one_line_that_names_file_and_line(tmp_path, garbage):
    """Nobody knows what the line was: the run must not go on with a hole in its records, nor throw the file away."""
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + garbage + b'\n{"step": 3}\n'
    path.write_bytes(content)
    for use in (JsonLines.read, lambda lines: lines.keep(lambda record: True)):
        with pytest.raises(UnusableError) as error:
            use(JsonLines(path, {"step": int}))
        assert str(error.value).startswith(f"{path}: line 2 ") and "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_an_expected_failure(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    if os.path.exists("/dev/full"):
        full = JsonLines("/dev/full")
        with pytest.raises(UnusableError, match="/dev/full: cannot be written .No space left on device."):
            full.append({"step": 1})
    (tmp_path / "metrics.jsonl.tmp").mkdir()
    with pytest.raises(UnusableError, match="metrics.jsonl: cannot be written"):
        lines.keep(lambda record: False)
    assert lines.read() == [{"step": 1}]
    with pytest.raises(UnusableError, match="cannot be read"):
        JsonLines(tmp_path).read()
