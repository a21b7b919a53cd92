"""The command line: bad input gets one line and a documented exit code, before TensorFlow is imported where that can be."""

import subprocess
import sys

import pytest
from helpers import ROOT

BAD_FLAGS = {
    "--preset=nope": ["preset", "nope", "quickstart"],
    "--mode=nope": ["mode", "nope", "evaluate"],
    "--model=alexnett": ["model", "alexnett", "alexnet"],
    "--model=VGG61": ["model", "VGG61"],
    "--model_options=lrm=false": ["model_options", "lrm"],
    "--model_options=dense_units=many": ["model_options", "many"],
    "--model=alexnet_mini --model_options=width=5": ["model_options", "width=5", "at most 4"],
    "--epochs=-1": ["epochs", "-1", "above 0"],
    "--epochs=0": ["epochs", "above 0"],
    "--epochs=nan": ["epochs", "nan", "finite"],
    "--epochs=inf": ["epochs", "inf", "finite"],
    "--epochs=many": ["--epochs=many: give a number, above 0"],
    "--debug=maybe": ["--debug=maybe: give true or false"],
    "--learning_rate=nan": ["learning_rate", "nan"],
    "--learning_rate=-0.1": ["learning_rate", "-0.1"],
    "--momentum=1": ["momentum", "below 1"],
    "--weight_decay=-1": ["weight_decay", "-1", "at least 0"],
    "--dropout_rate=1": ["dropout_rate", "below 1"],
    "--label_smoothing=1.5": ["label_smoothing", "1.5"],
    "--global_batch_size=0": ["global_batch_size", "at least 1"],
    "--global_batch_size=1.5": ["--global_batch_size=1.5: give a whole number, at least 1"],
    "--global_batch_size=10 --virtual_devices=4": ["global_batch_size", "10", "8 or 12"],
    "--global_batch_size=2 --virtual_devices=4": ["global_batch_size", "2", "nearest that do: 4"],
    "--virtual_devices=0": ["virtual_devices", "at least 1"],
    "--devices=-1": ["devices", "-1"],
    "--optimizer=sdg": ["optimizer", "sdg", "sgd, adam, adamw"],
    "--schedule=cosin": ["schedule", "cosin", "cosine"],
    "--augment=crop,flop": ["augment", "flop"],
    "--pixels=raw": ["pixels", "raw", "standardized"],
    "--precision=int8": ["precision", "int8", "bfloat16"],
    "--early_stopping_patience=2 --validation_split=": ["early_stopping_patience", "validation_split"],
    "--schedule=plateau --validation_split=": ["schedule", "validation_split"],
    "--model=VGG16 --dropout_rate=0.5": ["dropout_rate", "VGG16"],
    "--mode=evaluate": ["workdir", "evaluate"],
    "--mode=predict --workdir=runs/a": ["inputs", "files, folders or globs"],
    "--mode=predict --inputs=photos": ["workdir", "predict"],
    "--mode=export": ["workdir", "export"],
    "--checkpoint=newest": ["checkpoint", "newest", "latest"],
    "--benchmark_rows=step,loops": ["benchmark_rows", "loops", "input, read, ", "step, one_device, loop"],
    "--mode=benchmark --debug": ["debug", "benchmark"],
    "--learning_rat=0.1": ["learning_rat", "--learning_rate"],
    "--no_such_flag=1": ["no_such_flag", "--helpshort"],
    "train.py": ["train.py", "--name=value"],
    "--flagfile=/no/such/file": ["/no/such/file"],
    "--seed=-1": ["seed", "-1"],
    "--image_size=-5": ["image_size", "-5"],
    "--train_split=": ["train_split"],
    "--dataset=folder:": ["dataset", "folder:PATH"],
    "--dataset=foldr:/photos": ["dataset", "foldr", "folder:PATH"],
    "--max_bad_examples=-1": ["max_bad_examples", "at least 0"],
}

# Runs the parser on many command lines in one process, which must never import TensorFlow.
PARSE_EACH = """
import io, sys, time, contextlib
import main
from absl import flags
for line in sys.stdin.read().splitlines():
    values = flags.FlagValues()
    main.train_flags.define(values)
    main.flags.FLAGS = values
    error = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(error):
        try:
            main.parse_flags(["main.py", *line.split()])
        except SystemExit as stop:
            code = stop.code
    print(repr((line, code, error.getvalue())))
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""


@pytest.fixture(scope="module")
def parsed():
    """{command line: (exit code, what went to stderr)}."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE_EACH], input="\n".join(BAD_FLAGS), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    results = [eval(line) for line in done.stdout.splitlines()]  # noqa: S307, our own repr
    return {line: (code, text) for line, code, text in results}


@pytest.mark.parametrize("line", BAD_FLAGS)
def test_bad_flags_get_one_line_and_code_2(parsed, line):
    code, text = parsed[line]
    assert code == 2
    assert text.startswith("error: ") and text.count("\n") == 1, text
    for word in BAD_FLAGS[line]:
        assert word in text, text


def test_a_bad_flag_through_the_real_command_line(main):
    done = main("--epochs=-1")
    assert done.returncode == 2
    assert done.stderr == "error: --epochs=-1.0: give a value that is above 0\n"
    assert done.stdout == ""


def test_help_lists_every_flag_in_groups(main):
    from train_lib import config as config_lib

    done = main("--helpshort")
    assert done.returncode == 0
    for _, field in config_lib.leaves():
        assert f"--{field.name} " in done.stdout
    assert len(list(config_lib.leaves())) <= 70  # a budget: a setting that nobody changes is a constant


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--dataset=cifra10"], 2, ["cifra10", "cifar10"]),
        (["--train_split=trian"], 2, ["train_split", "trian", "train"]),
        (["--devices=3"], 2, ["devices", "3", "only 1 device"]),
        (["--image_size=8", "--model=alexnet"], 2, ["image_size", "8", "alexnet"]),
        (["--image_size=16", "--model=VGG16"], 2, ["image_size", "16", "VGG16"]),
        (["--init_from=/no/such/run"], 2, ["init_from", "/no/such/run"]),
    ],
)
def test_what_only_tensorflow_can_tell(main, tmp_path, data_dir, arguments, code, words):
    done = main(f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", *arguments)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0]


def test_an_unwritable_workdir(main, tmp_path):
    (tmp_path / "file").touch()
    done = main(f"--workdir={tmp_path / 'file' / 'run'}")
    assert done.returncode == 3
    assert "workdir" in done.stderr and str(tmp_path) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("data", ["folder:{0}/none", "npz:{0}/none.npz", "csv:{0}/none.csv", "tfrecord:{0}/*.tfrecord"])
def test_data_that_are_not_there_are_told_before_tensorflow_is_imported(tmp_path, data):
    code = "import main, sys\ntry:\n main.main([])\nfinally:\n assert 'tensorflow' not in sys.modules"
    code = code.replace("main.main([])", "main.open_workdir(main.train_flags.parse(sys.argv, main.flags.FLAGS))")
    workdir = tmp_path / "run"
    arguments = [f"--dataset={data.format(tmp_path)}", f"--workdir={workdir}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and f"SettingError: {arguments[0]}: " in done.stderr and "AssertionError" not in done.stderr
    assert not workdir.exists()


def test_evaluating_a_folder_without_checkpoint(main, tmp_path):
    done = main("--mode=evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 3
    assert "holds no checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_a_workdir_of_another_model(main, tmp_path, data_dir):
    common = (f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", "--train_split=train[:64]", "--validation_split=",
              "--test_split=", "--max_steps=1", "--global_batch_size=32", "--model_options=dense_units=16")
    assert main(*common, "--model=alexnet_mini").returncode == 0
    done = main(*common, "--model=alexnet_tower")
    assert done.returncode == 2
    assert "alexnet_tower" in done.stderr and "alexnet_mini" in done.stderr and done.stderr.count("\n") == 1
