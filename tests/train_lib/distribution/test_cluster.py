"""TF_CONFIG: what it means, and one line with exit code 2, without importing TensorFlow, for what cannot work."""

import json
import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib.distribution.cluster import Cluster, ClusterError, check_settings, read_cluster, split_address

TWO = ["a:1", "b:2"]


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def task(kind, index=0):
    return {"type": kind, "index": index}


@pytest.mark.parametrize(
    "content",
    [
        {}, None, {"cluster": {}}, {"cluster": None}, {"task": task("worker")}, {"cluster": {}, "task": task("worker")},
        {"cluster": {"worker": [], "ps": None}, "task": task("worker")},
        {"cluster": {"worker": ["a:1"]}, "task": task("worker")}, {"cluster": {"chief": ["a:1"]}, "task": task("chief")},
        {"cluster": {"master": ["a:1"]}, "task": task("master")}, {"cluster": {"worker": ["a:1"]}},
        {"cluster": {"chief": ["a:1"], "worker": [], "ps": [], "evaluator": []}, "task": task("chief", "0")},
        {"cluster": {"worker": ["a:1"]}, "task": task("worker", 3)}, {"cluster": {"worker": ["a:1"]}, "task": None},
    ],
)
def test_launchers_set_it_for_one_machine_too(content):
    """Schedulers set TF_CONFIG for a single task, in many forms. It must neither start a server nor need a --workdir."""
    assert read_cluster({"TF_CONFIG": json.dumps(content)}) is None


@pytest.mark.parametrize("environ", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": " \n"}])
def test_without_a_value_a_machine_is_alone(environ):
    """An empty variable is one that a script has cleared."""
    assert read_cluster(environ) is None


def test_types_without_tasks_do_not_count():
    """Launchers list all types that they know; the empty ones must change neither ranks nor what TensorFlow is told."""
    cluster = read_cluster(tf_config({"ps": [], "chief": [], "worker": TWO, "evaluator": []}, index=1))
    assert cluster.spec() == {"worker": TWO} and cluster.rank == 1


def test_a_master_is_a_chief():
    """TensorFlow 1 called it so, and some launchers still do; TensorFlow 2 does not know a `master`."""
    for kind in ("master", "chief"):
        for name in ("master", "chief"):
            cluster = read_cluster(tf_config({"worker": ["w:1"], name: ["c:2"]}, kind))
            assert cluster == read_cluster(tf_config({"worker": ["w:1"], "chief": ["c:2"]}, "chief")) and cluster.rank == 0
    cluster = read_cluster(tf_config({"worker": ["w:1"], "master": ["c:2"]}, "worker"))
    assert cluster.spec() == {"chief": ["c:2"], "worker": ["w:1"]} and cluster.rank == 1


def test_ranks_are_those_of_tensorflow():
    """TensorFlow numbers the chief before the workers, whatever the order in TF_CONFIG. Another order would swap their shares."""
    cluster = {"worker": ["w0:1", "w1:2"], "chief": ["c:3"]}
    chief = read_cluster(tf_config(cluster, "chief", 0))
    assert chief.addresses == ("c:3", "w0:1", "w1:2") and chief.rank == 0
    second = read_cluster(tf_config(cluster, "worker", 1))
    assert second.rank == 2 and second.spec() == cluster and second.name(2) == "worker 1 (w1:2)"
    assert read_cluster(tf_config({"worker": TWO}, "worker", "1")).rank == 1  # some schedulers write the index as text


def test_ranks_agree_with_the_code_of_tensorflow():
    """The same compared with TensorFlow: its ranks decide about shares of the data, ours about the chief."""
    from tensorflow.python.distribute import multi_worker_util

    for spec in ({"worker": ["w0:1", "w1:2", "w2:3"]}, {"worker": ["w0:1", "w1:2"], "chief": ["c:3"]}):
        for kind, addresses in spec.items():
            for index in range(len(addresses)):
                cluster = read_cluster(tf_config(spec, kind, index))
                assert cluster.rank == multi_worker_util.id_in_cluster(spec, kind, index)
                assert (cluster.rank == 0) == multi_worker_util.is_chief(spec, kind, index)


@pytest.mark.parametrize(
    ("address", "parts"), [("a.b:22", ("a.b", 22)), ("[::1]:22", ("::1", 22)), ("10.0.0.1:1", ("10.0.0.1", 1))])
def test_addresses_are_split_at_the_last_colon(address, parts):
    """An IPv6 host contains colons."""
    assert split_address(address) == parts
    assert read_cluster(tf_config({"worker": [address, "b:2"]})).addresses[0] == address


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("worker", ["worker", "not JSON"]),
        ("[1]", ["`cluster`", "`task`"]),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', ["needs a `task`"]),
        ('{"cluster": ["a:1", "b:2"]}', ["`cluster` must map"]),
        (tf_config({"worker": TWO}, index=2), ["index 2", "0 to 1"]),
        (tf_config({"worker": TWO}, index=-1), ["index -1", "0 to 1"]),
        (tf_config({"worker": TWO}, index=True), ["index True", "0 to 1"]),
        (tf_config({"worker": TWO}, index=None), ["index None", "0 to 1"]),
        (tf_config({"worker": TWO}, "chief"), ["'chief'", "worker"]),
        (tf_config({"worker": TWO}, ["worker"]), ["type ['worker']"]),
        (tf_config({"worker": TWO}, "ps"), ["type 'ps'", "no parameter servers", "do not start"]),
        (tf_config({"worker": TWO, "ps": []}, "ps"), ["type 'ps'", "no parameter servers", "do not start"]),
        (tf_config({"worker": TWO}, "evaluator"), ["type 'evaluator'", "evaluate themselves", "do not start"]),
        (tf_config({"worker": TWO, "ps": ["c:3"]}), ["'ps' tasks", "leave `ps` out of `cluster`", "do not start"]),
        (tf_config({"ps": ["c:3"]}, "ps"), ["'ps' tasks", "leave `ps` out of `cluster`"]),
        (tf_config({"chief": ["a:1"], "evaluator": ["c:3"]}), ["'evaluator' tasks", "leave `evaluator` out", "do not start"]),
        (tf_config({"worker": TWO, "boss": ["c:3"]}), ["'boss' tasks", "chief and worker", "remove"]),
        (tf_config({"worker": TWO, "chief": ["c:3"], "master": ["d:4"]}), ["more than one chief", "older name"]),
        (tf_config({"worker": TWO, "chief": ["c:3", "d:4"]}), ["more than one chief"]),
        (tf_config({"worker": "a:1"}), ["list of addresses", "'worker'"]),
        (tf_config({"worker": TWO, "chief": "c:3"}), ["list of addresses", "'chief'"]),
        (tf_config({"worker": ["a:1", "a:1"]}), ["a:1 more than once"]),
        (tf_config({"worker": ["a:1", "b:2"], "chief": ["b:2"]}), ["b:2 more than once"]),
        *((tf_config({"worker": ["a:1", bad]}), [repr(bad), "host:port"])
          for bad in ("b", "b:", ":2", "b:0", "b:65536", "b:two", "http://b:2", "::1:2", "b c:2", 7, None)),
    ],
)
def test_malformed_values_are_named_with_the_remedy(value, words):
    """TensorFlow answers most of these with a traceback, and some by waiting forever."""
    with pytest.raises(ClusterError) as caught:
        read_cluster(value if isinstance(value, dict) else {"TF_CONFIG": value})
    line = str(caught.value)
    assert caught.value.exit_code == 2 and line.startswith("TF_CONFIG=") and "\n" not in line
    for word in words:
        assert word in line


def test_a_long_value_is_cut():
    """A thousand addresses would hide the remedy."""
    with pytest.raises(ClusterError) as caught:
        read_cluster(tf_config({"worker": [f"host{number}:1" for number in range(1000)] + ["bad"]}))
    assert len(str(caught.value)) < 600 and "'bad'" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workdir": None}, ["--workdir=", "all see"]),
        ({"debug": True}, ["--debug=True", "2 workers"]),
        ({"virtual_devices": 2}, ["--virtual_devices=2", "2 workers"]),
        ({"global_batch_size": 33}, ["--global_batch_size=33", "32 or 34"]),
    ],
)
def test_settings_that_cannot_work_on_several_workers(values, words):
    """Without a common --workdir, each worker would make its own; with the other settings, they hang or train other batches."""
    cluster = Cluster((("worker", 0, "a:1"), ("worker", 1, "b:2")), 0)
    check_settings(config_lib.from_values({"workdir": "w"}), cluster)
    with pytest.raises(SettingError) as caught:
        check_settings(config_lib.from_values({"workdir": "w"} | values), cluster)
    for word in words:
        assert word in str(caught.value)


def test_tf_config_is_checked_before_tensorflow_is_imported(main):
    """A typing error in TF_CONFIG must not cost an import of TensorFlow, nor print a traceback."""
    start = time.monotonic()
    done = main("--workdir=unused", env=tf_config({"worker": TWO}, index=5))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: TF_CONFIG=") and done.stderr.count("\n") == 1
    assert time.monotonic() - start < 5
    code = "import sys, os, main, train_lib.distribution.cluster; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_one_task_needs_no_workdir(main, tmp_path):
    """Through main.py, up to what is checked next: whether the data are there."""
    value = json.dumps({"cluster": {"chief": ["a:1"], "worker": [], "ps": []}, "task": task("chief")})
    done = main(f"--dataset=folder:{tmp_path / 'nowhere'}", cwd=tmp_path, env={"TF_CONFIG": value})
    assert done.stderr.startswith("error: --dataset=folder:") and done.stderr.count("\n") == 1


def test_other_modes_ignore_tf_config(main, tmp_path):
    """A shell that still has TF_CONFIG set must be able to evaluate on one machine."""
    done = main("--mode=evaluate", f"--workdir={tmp_path}", env={"TF_CONFIG": "nonsense", "PATH": os.environ["PATH"]})
    assert done.returncode == 3 and "holds no checkpoint" in done.stderr
