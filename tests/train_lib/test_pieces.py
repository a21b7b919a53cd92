"""A run in pieces of --max_steps counts like an uncut one, wherever it is cut."""

import json

import numpy as np
import pytest

from train_lib import config as config_lib
from train_lib.checkpoints.store import CheckpointStore
from train_lib.optimizers import LossScale
from train_lib.records.workdir import open_workdir
from train_lib.setup import open_run
from train_lib.train import Trainer

# Everything that counts: patience, plateau, best, averages, the loss scale, the sums of a record. An epoch has 4 steps, an
# evaluation comes every 2 and a record every 3, so a cut can fall on either, both or none.
VALUES = {
    "model": "alexnet_mini", "model_options": "width=0.1,dense_units=16", "train_split": "train[:80]", "global_batch_size": 20,
    "validation_split": "train[80:110]", "test_split": "test[:30]", "augment": "crop,flip", "steps_per_loop": 4,
    "log_every_steps": 3, "eval_every_epochs": 0.5, "epochs": 11, "keep_checkpoints": 1, "learning_rate": 0.003,
    "schedule": "plateau", "early_stopping_patience": 9, "ema_decay": 0.8, "precision": "float16",
}


@pytest.fixture(scope="module", autouse=True)
def frequent_growth():
    """A loss scale that changes often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossScale, "STEPS_TO_DOUBLE", 7)
        yield

def open_piece(folder, data_dir, **values):
    """Opens the run to go on; returns the Run and the lines about going on."""
    config = config_lib.from_values(VALUES | {"data_dir": str(data_dir), "workdir": str(folder)} | values)
    workdir, lines = open_workdir(config), []
    store = CheckpointStore(workdir.checkpoints, config.cadence.keep_checkpoints)
    return open_run(config, workdir, store.newest(), store, log=lines.append), lines


def train(folder, data_dir, **values):
    """Trains up to the next cut; returns (result.json, the lines about going on)."""
    run, lines = open_piece(folder, data_dir, **values)
    assert Trainer(run).train() == 0
    return json.loads((folder / "result.json").read_text()), lines


def what_it_left(folder):
    """What two equal runs have in common: records, result, counters and tensors."""
    newest, best = (CheckpointStore(folder / "checkpoints").find(which) for which in ("latest", "best"))
    result = json.loads((folder / "result.json").read_text())
    return {
        "records": (folder / "metrics.jsonl").read_text(),
        "result": {name: value for name, value in result.items() if name not in ("seconds", "images_per_second")},
        "progress": newest.description["progress"],
        "best": best.step,
    }, newest.tensors() | {f"best {name}": tensor for name, tensor in best.tensors().items()}


def assert_equal(folder, uncut):
    values, tensors = what_it_left(folder)
    expected, arrays = what_it_left(uncut)
    assert values == expected
    assert tensors.keys() == arrays.keys()
    assert all(np.array_equal(tensors[name], arrays[name]) for name in arrays)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, data_dir):
    """The workdir of a run that early stopping ends before its last step, after the plateau schedule has dropped."""
    folder = tmp_path_factory.mktemp("uncut") / "run"
    result, _ = train(folder, data_dir)
    progress = CheckpointStore(folder / "checkpoints").newest().description["progress"]
    assert result["status"] == "early_stopped" and 20 < result["steps"] < 44 and progress["judgement"]["plateau_drops"] >= 1
    return folder


def run_in_pieces(folder, data_dir, cuts):
    for cut in [*cuts, 0]:
        result, lines = train(folder, data_dir, max_steps=cut)
        assert not any("patience" in line for line in lines)
        if result["status"] == "early_stopped":
            return


def test_a_run_in_two_pieces_equals_the_uncut_one(uncut, tmp_path, data_dir):
    """The cut is neither at a record nor at an evaluation, so both come there only because the piece ends."""
    run_in_pieces(tmp_path / "run", data_dir, [13])
    assert_equal(tmp_path / "run", uncut)


def test_patience_starts_again_only_after_an_early_stop(uncut, data_dir):
    run, lines = open_piece(uncut, data_dir, epochs=12)
    assert run.state.validation.stopping.waited == 0
    assert lines[-1] == ("early stopping had ended the run after 9 evaluations without improvement; its patience starts again")
    run, lines = open_piece(uncut, data_dir, early_stopping_patience=12)  # not asked to train longer, only to wait longer
    assert run.state.validation.stopping.waited == 9 and not any("again" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_run_in_random_pieces_equals_the_uncut_one(uncut, tmp_path, data_dir, seed):
    generator = np.random.default_rng(seed)
    run_in_pieces(tmp_path / "run", data_dir, sorted(generator.choice(range(1, 44), 1 + seed, replace=False).tolist()))
    assert_equal(tmp_path / "run", uncut)


@pytest.mark.slow
def test_a_best_checkpoint_at_the_end_of_a_piece_does_not_cost_the_one_before(tmp_path, data_dir, monkeypatch):
    """An uncut run does not evaluate at step 5, so its best stays that of step 4, which must still be there."""
    accuracies = {2: 0.1, 4: 0.5, 5: 0.9, 6: 0.3, 8: 0.4}
    monkeypatch.setattr(
        "train_lib.train.evaluate_weights", lambda _, state, stop_asked: {"loss": 1.0, "accuracy": accuracies[state.step]})
    train(tmp_path / "uncut", data_dir, max_steps=8)
    assert train(tmp_path / "run", data_dir, max_steps=5)[0]["best_step"] == 5
    assert train(tmp_path / "run", data_dir, max_steps=8)[0]["best_step"] == 4
    assert_equal(tmp_path / "run", tmp_path / "uncut")
