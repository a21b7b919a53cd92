"""--profile_steps: the right steps are traced, and a trace ends and stays in the workdir."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from train_lib import config as config_lib
from train_lib.cadence import make_plan
from train_lib.distribution.workers import OneWorker
from train_lib.records.profiling import Profile
from train_lib.records.workdir import Workdir


@pytest.fixture
def traced(monkeypatch):
    """Records what Profile asks of TensorFlow's profiler, instead of doing it."""
    calls = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def go(profile, stops, calls):
    """Runs a loop that stops at `stops`; returns {(first step, stop): whether it was traced}."""
    seen = {}
    for first, stop in zip(stops, stops[1:], strict=False):
        profile.before_steps(run_at(first))
        seen[first, stop] = calls.count("start") > calls.count("stop")
        profile.after_steps(run_at(stop), None)
    profile.on_stop(run_at(stops[-1]))
    return seen


def run_at(step, steps=None, last=10, folder="."):
    """The part of a Run that a profile looks at."""
    device = SimpleNamespace(profile_range=lambda: steps)
    return SimpleNamespace(
        state=SimpleNamespace(step=step), plan=SimpleNamespace(last_step=last), config=SimpleNamespace(device=device),
        workdir=Workdir(folder), workers=OneWorker())


def test_the_plan_stops_where_a_profile_starts_and_stops():
    """A call of the loop that ran past START or STOP would put steps into the trace that nobody asked for."""
    values = {"profile_steps": "7:13", "steps_per_loop": 10, "global_batch_size": 10, "log_every_steps": 100}
    plan = make_plan(config_lib.from_values(values), 1000)
    stops = [0]
    while stops[-1] < 33:
        stops.append(plan.next_stop(stops[-1]))
    assert stops == [0, 7, 13, 23, 33]
    plain = make_plan(config_lib.from_values(values | {"profile_steps": ""}), 1000)
    assert [plain.next_stop(step) for step in (0, 7, 13)] == [10, 17, 23]


@pytest.mark.parametrize(
    ("steps", "first", "last", "expected", "words"),
    [
        ((2, 4), 0, 10, [(2, 4)], []),
        (None, 0, 10, [], []),
        ((10, 12), 0, 10, [], ["--profile_steps=10:12", "ends at step 10", "nothing"]),
        ((2, 4), 4, 10, [], ["--profile_steps=2:4", "goes on at step 4", "nothing"]),
        ((2, 6), 4, 10, [(4, 6)], ["--profile_steps=2:6", "the profile covers 4:6"]),
        ((8, 20), 0, 10, [(8, 10)], ["--profile_steps=8:20", "the profile covers 8:10"]),
    ],
)
def test_exactly_the_requested_steps_or_a_line(tmp_path, traced, steps, first, last, expected, words):
    """If the run never reaches the range, the user must not wait for a trace in vain."""
    lines = []
    profile = Profile(run_at(first, steps, last, tmp_path), lines.append)
    logged = list(lines)
    assert len(logged) == bool(words) and all(word in logged[0] for word in words), logged
    seen = go(profile, list(range(first, last + 1, 2)), traced)
    assert [stretch for stretch, on in seen.items() if on] == [
        (step, step + 2) for start, stop in expected for step in range(start, stop, 2)]
    assert traced == ["start", "stop"] * len(expected)


def test_a_trace_ends_when_the_loop_fails(tmp_path, traced):
    """A profiler that is left on writes nothing, and the next one of the process cannot start. The trainer calls on_stop then."""
    profile = Profile(run_at(0, (0, 5), 10, tmp_path), lambda line: None)
    profile.before_steps(run_at(0))
    profile.on_stop(run_at(2))
    assert traced == ["start", "stop"]


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, traced, monkeypatch):
    def refuse():
        raise tf.errors.ResourceExhaustedError(None, None, "disk full\nmore")

    monkeypatch.setattr(tf.profiler.experimental, "stop", refuse)
    lines = []
    go(Profile(run_at(0, (0, 2), 4, tmp_path), lines.append), [0, 2, 4], traced)
    assert lines == ["no profile: disk full more; going on"]


@pytest.mark.slow
def test_a_profile_through_the_command_line_outlives_the_resume(main, tmp_path, data_dir):
    """Resuming rewrites TensorBoard's scalars and must leave the trace alone. And a trace must not change the records."""
    common = (
        f"--data_dir={data_dir}", "--model=alexnet_mini", "--model_options=width=0.1,dense_units=32", "--train_split=train[:128]",
        "--validation_split=", "--test_split=", "--global_batch_size=32", "--log_every_steps=4", "--steps_per_loop=4",
    )
    run = (*common, f"--workdir={tmp_path / 'run'}", "--epochs=2")
    first = main(*run, "--max_steps=4", "--profile_steps=1:3")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "run" / "tensorboard"
    assert "profile of steps 1:3" in first.stdout
    [trace] = folder.rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000 and trace.is_relative_to(folder / "plugins" / "profile")
    second = main(*run, "--profile_steps=1:3")
    assert second.returncode == 0, second.stderr
    assert "goes on at step 4; nothing is profiled" in second.stdout
    assert list(folder.rglob("*.xplane.pb")) == [trace] and len(list((folder / "train").iterdir())) == 1
    assert main(*common, f"--workdir={tmp_path / 'plain'}", "--epochs=2").returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
