"""Files and variables of other programs change nothing in a run, prevent no start, and print nothing."""

import json
import os
import stat
import subprocess
import sys

import pytest
from helpers import ROOT, run_main

SMALL = ("--model_options=width=0.25,dense_units=16", "--train_split=train[:64]", "--validation_split=train[64:96]",
         "--test_split=", "--global_batch_size=16", "--max_steps=3", "--deterministic")
KERAS_JSON = {"image_data_format": "channels_first", "floatx": "float64", "epsilon": 0.1, "backend": "jax"}
MATPLOTLIBRC = "text.usetex: true\nfont.size: 30\nfont.family: no_font\nfigure.dpi: many\nkey: 3\nsavefig.bbox: tight\nrubbish\n"
FOREIGN = {
    "HOME": "/dev/null/home", "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "many", "KERAS_NNX_ENABLED": "1", "TF2_BEHAVIOR": "0",
    "TF_USE_LEGACY_KERAS": "1", "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1", "TF_ENABLE_AUTO_MIXED_PRECISION_GRAPH_REWRITE": "1",
    "TF_NUM_INTRAOP_THREADS": "many", "TF_NUM_INTEROP_THREADS": "many", "XLA_FLAGS": "--no_such_flag=1",
    "CUDA_VISIBLE_DEVICES": "rubbish", "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MPLCONFIGDIR": "/dev/null/mpl",
    "PYTHONWARNINGS": "error", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp", "TF_VAR_password": "secret",
}


def written(workdir):
    """{path: content} of what two equal runs write alike: records, pictures, and the hashes of a checkpoint's files."""
    paths = [workdir / "metrics.jsonl", *workdir.glob("pictures/*.png"), *workdir.glob("checkpoints/*/manifest.json")]
    return {path.relative_to(workdir): path.read_bytes() for path in paths}


def start(cwd, data_dir, name, *arguments, **variables):
    command = [sys.executable, ROOT / "main.py", *SMALL, f"--data_dir={data_dir}", f"--workdir={cwd / name}", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"} | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment)


def test_foreign_settings_change_nothing_all_together(tmp_path, data_dir):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(json.dumps(KERAS_JSON))
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    foreign = start(tmp_path, data_dir, "foreign", KERAS_HOME=str(tmp_path / "keras"), **FOREIGN)
    clean = start(ROOT, data_dir, tmp_path / "clean", CUDA_VISIBLE_DEVICES="-1")
    for process in (foreign, clean):
        _, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
    contents = written(tmp_path / "clean")
    assert len(contents) >= 4
    assert written(tmp_path / "foreign") == contents
    recorded = json.loads((tmp_path / "foreign" / "environment.json").read_text())["settings"]
    kept = ("TF_NUM_INTRAOP_THREADS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "TF_ENABLE_AUTO_MIXED_PRECISION_GRAPH_REWRITE")
    assert {name: FOREIGN[name] for name in kept}.items() <= recorded.items()
    assert not {"TF_VAR_password", "TF_CPP_MIN_LOG_LEVEL", "TF_FUNCTION_JIT_COMPILE_DEFAULT"} & set(recorded)
    if "TF_ENABLE_ONEDNN_OPTS" not in os.environ:
        assert "TF_ENABLE_ONEDNN_OPTS" not in recorded


def test_if_tensorflow_ends_the_process_its_reason_appears(tmp_path, data_dir):
    """It parses these flags while we hide what it prints on machines without a GPU."""
    done = run_main(f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", env={"TF_XLA_FLAGS": "--no_such_flag=1"})
    first, reason = done.stderr.splitlines()
    assert done.returncode != 0
    assert first == "error: the process ended while TensorFlow was imported:"
    assert reason.endswith("Unknown flag in TF_XLA_FLAGS: --no_such_flag=1")


# Prints Keras's settings as main.py finds them, and where pretrained weights of an edited network would be kept.
PRINT_SETTINGS = """
import main
from train_lib import config
main.prepare_environment(config.ExperimentConfig(), None)
import keras
keras.utils.get_file("weights.h5", origin="file:///dev/null", cache_subdir="models")
settings = [getattr(keras.config, name)() for name in ("backend", "floatx", "epsilon", "image_data_format")]
print(*settings, keras.config.dtype_policy().name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("content", [
    "rubbish", "[1]", '{"floatx": "float16"}', '{"floatx": "int8"}', '{"epsilon": "small"}', '{"image_data_format": "sideways"}',
    '{"backend": "nonsense"}', '{"nnx_enabled": true}', None])
def test_no_keras_json_is_read(content, tmp_path):
    file = tmp_path / "keras.json"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", PRINT_SETTINGS], cwd=ROOT, capture_output=True, text=True, timeout=100,
                          env=environment | {"KERAS_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "tensorflow float32 1e-07 channels_last float32"
    assert (tmp_path / "models" / "weights.h5").exists()
    assert content is None or file.read_text() == content


@pytest.fixture(params=["below a file", "full", "read-only"])
def bad_home(request, tmp_path):
    """A home folder that cannot be used."""
    if request.param == "below a file":
        yield "/dev/null/home"
        return
    folder = tmp_path / "home"
    folder.mkdir()
    options = "size=64k" if request.param == "full" else "ro"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        if request.param == "full":
            (folder / "rest").write_bytes(bytes(16 * 4096 - 4096))
        yield str(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_the_quickstart_needs_no_home(bad_home, tmp_path):
    """And the run goes on where there is one: the embedded data are the same in every folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    cut = [flag for flag in SMALL if not flag.startswith("--max_steps")]
    environment = {"HOME": bad_home, "XDG_CACHE_HOME": "", "TMPDIR": str(temporary)}
    workdir = tmp_path / "run"
    done = run_main(*cut, "--max_steps=2", f"--workdir={workdir}", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    spare = temporary / f"alexnet-{os.getuid()}"
    lines = [line for line in done.stderr.splitlines() if not line.startswith("preparing shapes 1.0.0 in ")]
    assert lines == [f"{bad_home}/tensorflow_datasets cannot be used; the embedded data set is in {spare}"]
    assert stat.S_IMODE(spare.stat().st_mode) == 0o700
    assert done.stdout.count("decoded images not kept") == 1
    again = run_main(*cut, "--max_steps=3", f"--workdir={workdir}", f"--data_dir={spare}", env={"HOME": str(tmp_path)})
    assert (again.returncode, again.stderr) == (0, "")
    once = run_main(*SMALL, f"--workdir={tmp_path / 'once'}", f"--data_dir={spare}")
    assert once.returncode == 0
    name = "checkpoints/step-00000003/ckpt.data-00000-of-00001"
    assert (workdir / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("~")]
    if bad_home != "/dev/null/home":
        return  # the other modes once is enough
    for mode in ("evaluate", "export", "report"):
        done = run_main(f"--mode={mode}", "--split=test[:50]", f"--workdir={workdir}", cwd=tmp_path, env=environment)
        assert done.returncode == 0
        assert [line for line in done.stderr.splitlines() if line not in lines] == []
    done = run_main("--mode=predict", f"--workdir={workdir}", f"--inputs={workdir}/pictures", cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
