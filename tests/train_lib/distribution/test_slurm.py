"""What SLURM's variables mean, how tasks find each other without TF_CONFIG, and how they share GPUs. No SLURM is needed here."""

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import threading
import time

import pytest
import tensorflow as tf

from input_pipeline.common.errors import LostWorkerError, SettingError, UnusableError
from tests.train_lib.distribution.test_rendezvous import together
from train_lib import config as config_lib
from train_lib.distribution import rendezvous, strategy
from train_lib.distribution.cluster import ClusterError, check_settings, read_cluster
from train_lib.distribution.rendezvous import connect
from train_lib.distribution.slurm import expand_hosts
from train_lib.distribution.workers import Workers

TF_CONFIG = json.dumps({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}})
# What a real batch script sees: the job's variables, a rank too, but no step.
BATCH = {"SLURM_JOB_ID": "8", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
         "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1", "SLURM_TASKS_PER_NODE": "1(x2)"}


def step(rank, size=2, node="127.0.0.1", job=8, **more):
    """The environment of a task."""
    return BATCH | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(size), "SLURM_PROCID": str(rank),
                    "SLURM_STEP_NODELIST": "127.0.0.1", "SLURMD_NODENAME": node} | more


def clusters(size, **more):
    return [read_cluster(step(rank, size, **more)) for rank in range(size)]


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        (BATCH, None),
        ({name: value for name, value in BATCH.items() if "PROCID" not in name}, None),  # salloc's shell
        (step(0, size=1), None),
        (step(1), "SLURM started 2 tasks"),
        (step(1) | {"TF_CONFIG": " "}, "SLURM started 2 tasks"),
        (step(0) | {"TF_CONFIG": TF_CONFIG}, "TF_CONFIG names 2 workers"),
        (step(0) | {"TF_CONFIG": "{}"}, None),
    ],
)
def test_only_tasks_of_one_srun_train_together(environ, several):
    """A batch script that runs main.py by itself would otherwise wait for tasks that nobody starts."""
    cluster = read_cluster(environ)
    assert (cluster and cluster.several) == several
    if several:
        assert cluster.rank == 1 and len(cluster.tasks) == 2


@pytest.mark.parametrize("damage", [{"SLURM_STEP_ID": None}, {"SLURM_PROCID": "x"}, {"SLURM_STEP_NODELIST": "n[1-x]"}])
def test_variables_that_came_through_in_part_are_one_line(damage):
    environ = {name: value for name, value in (step(0) | damage).items() if value is not None}
    with pytest.raises(ClusterError, match="^SLURM_STEP_NUM_TASKS=2: the other variables of srun are missing or damaged"):
        read_cluster(environ)


LISTS = ("n1", "n[1-3]", "n[1-3,7]", "n[1,3-4],m7,gpu-a[08-11]", "node[098-101,007]", "[1-2]", "a,b,a", "n[9-10]")


@pytest.mark.parametrize("text", LISTS)
def test_host_lists_agree_with_tensorflow(text):
    """TensorFlow has its own reader of the lists that have one range at their end."""
    from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import expand_hostlist

    assert expand_hosts(text) == expand_hostlist(text)


MORE_LISTS = {"r[0-1]n[08-10],login": [f"r{r}n{n}" for r in (0, 1) for n in ("08", "09", "10")] + ["login"],
              "r[0-1]-[1]-ib,m": ["r0-1-ib", "r1-1-ib", "m"], "a[1-2]b[3]c[4,6]": ["a1b3c4", "a1b3c6", "a2b3c4", "a2b3c6"]}


@pytest.mark.parametrize("text", MORE_LISTS)
def test_host_lists_with_ranges_anywhere(text):
    """TensorFlow refuses these."""
    assert expand_hosts(text) == MORE_LISTS[text]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("scontrol"), reason="no scontrol here")
@pytest.mark.parametrize("text", [text for text in [*LISTS, *MORE_LISTS] if "]-ib" not in text])
def test_host_lists_agree_with_scontrol(text):
    """This version of SLURM writes hosts whose names go on behind a number one by one, and refuses a range there."""
    done = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"scontrol: {done.stderr.strip()}")
    assert expand_hosts(text) == done.stdout.split()


def test_ports_are_a_function_of_job_step_and_rank():
    """All tasks must compute the same, whatever Python's hash seed; other steps and ranks look elsewhere."""
    first = read_cluster(step(0)).step
    assert first.ports(1) == read_cluster(step(1)).step.ports(1)
    assert first.ports(0)[:3] == (21910, 29760, 27722)
    others = [read_cluster(step(0, job=9)).step, read_cluster(step(0, SLURM_STEP_ID="1")).step]
    assert not set(first.ports(0)) & {port for other in others for port in other.ports(0)} and first.ports(0) != first.ports(1)
    outgoing = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < port < outgoing for rank in range(100) for port in first.ports(rank))


def meet(cluster, seconds=20):
    return connect(cluster, wait_seconds=seconds)


def test_two_jobs_on_one_node_meet_apart():
    """Several tasks on one node need a port each, and the tasks of two jobs must not mix."""
    jobs = [clusters(3), clusters(3, job=9)]
    results = together(*((lambda cluster=cluster: meet(cluster)) for job in jobs for cluster in job))
    for index in (0, 3):
        met = [cluster for cluster, _ in results[index : index + 3]]
        assert met[0].addresses == met[1].addresses == met[2].addresses and [cluster.rank for cluster in met] == [0, 1, 2]
        assert met[0].spec() == {"worker": list(met[0].addresses)} and met[0].name(2) == f"task 2 ({met[0].addresses[2]})"
    both = {address for cluster, _ in results for address in cluster.addresses}
    assert len(both) == 6 and all(address.startswith("127.0.0.1:") for address in both)


def test_ports_that_others_have_are_passed_over(monkeypatch):
    """Of the chief's first three ports, one accepts and is silent, one belongs to the chief of another job, one is reserved."""
    monkeypatch.setattr(rendezvous, "HELLO_SECONDS", 0.5)
    chief, worker = clusters(2)
    silent, foreign, reserved, fourth = chief.step.ports(0)[:4]
    other = clusters(2, job=9)[0]
    monkeypatch.setattr(type(other.step), "ports", lambda self, rank: (foreign,) if self.name == "9.0" else ports(self, rank))
    with socket.create_server(("", silent)), socket.socket(socket.AF_UNIX) as reservation:
        reservation.bind(f"\0alexnet worker at port {reserved}")
        results = together(lambda: meet(other, 3), lambda: wait_for(foreign) or meet(chief), lambda: meet(worker))
    assert isinstance(results[0], LostWorkerError)  # its own task 1 never came, and ours did not join
    assert results[1][0].addresses == results[2][0].addresses and results[1][0].addresses[0] == f"127.0.0.1:{fourth}"


ports = type(clusters(2)[0].step).ports


def wait_for(port):
    """Waits until somebody listens at a port."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at {port}")


def test_a_port_stays_reserved_until_tensorflow_takes_it():
    """Between the meeting and TensorFlow's start, nobody listens there; another job would take the port."""
    job = clusters(2, job=21)
    (first, _), _ = together(*((lambda cluster=cluster: meet(cluster)) for cluster in job))
    (again, _), _ = together(*((lambda cluster=cluster: meet(cluster)) for cluster in job))
    assert not set(first.addresses) & set(again.addresses)


def test_task_0_on_a_later_node():
    """With `srun --distribution=arbitrary`, task 0 runs where the host file says."""
    hosts = {"SLURM_STEP_NODELIST": "127.0.0.[2-3]", "SLURM_DISTRIBUTION": "arbitrary", "job": 33}
    chief, worker = (read_cluster(step(rank, node=f"127.0.0.{3 - rank}", **hosts)) for rank in range(2))
    (met, _), (same, _) = together(lambda: meet(chief), lambda: meet(worker))
    assert met.addresses == same.addresses and [address.split(":")[0] for address in met.addresses] == ["127.0.0.3", "127.0.0.2"]
    cyclic = read_cluster(step(1, SLURM_STEP_NODELIST="n[1-9]", SLURM_DISTRIBUTION="cyclic"))
    assert cyclic.step.hosts == ("n1",) and cyclic.name(0) == "task 0 (n1)"


def test_errors_speak_of_srun():
    """Somebody who has never written TF_CONFIG must not read of it."""
    chief, worker = clusters(2, job=44)
    for error in together(lambda: meet(chief, 0.5)) + together(lambda: meet(worker, 0.5)):
        assert isinstance(error, LostWorkerError) and "task" in str(error) and "srun" in str(error)
    assert "from task 0 (127.0.0.1): " in str(error)
    for rank, flag in ((0, {"workdir": None}), (1, {"debug": True}), (1, {"virtual_devices": 2})):
        with pytest.raises(SettingError, match="SLURM started 2 tasks"):
            check_settings(config_lib.from_values({"workdir": "w"} | flag), (chief, worker)[rank])


def test_what_a_user_reads_who_forgot_the_workdir(main):
    """Before TensorFlow is imported, on every task."""
    done = main(env=step(1))
    line = "error: --workdir=: SLURM started 2 tasks; give all of them one folder that they all see\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_second_process_in_a_task_is_refused():
    """A task that starts main.py twice would train one share twice."""
    chief, worker, last = clusters(3, job=55)
    calls = [threading.Thread(target=meet, args=(cluster,), daemon=True) for cluster in (chief, worker)]
    for call in calls:
        call.start()
        wait_for(chief.step.ports(0)[0])
    time.sleep(0.5)
    (refused,) = together(lambda: meet(worker, 5))
    assert isinstance(refused, ClusterError)
    assert str(refused) == "SLURM_PROCID=1: another process is task 1 already; start main.py once in each task"
    together(lambda: meet(last))


def test_no_free_port():
    """The line must name what to free."""
    chief = clusters(2, job=66)[0]
    held = [socket.create_server(("", port)) for port in chief.step.ports(0)]
    with pytest.raises(UnusableError, match=r"SLURM: ports 2\d{4}, .* task 0 \(127.0.0.1\).*in use.*srun again"):
        meet(chief, 1)
    for listener in held:
        listener.close()


class Fakes:
    """Stands for the workers of a cluster whose tasks have these environments, seen from one of them."""

    is_alone = False

    def __init__(self, environments, rank):
        self.cluster, self._all = read_cluster(environments[rank]), [read_cluster(environ) for environ in environments]

    def gather(self, value):
        return [cluster.step.gpus for cluster in self._all] if isinstance(value, list) else [value] * len(self._all)


def devices_of(monkeypatch, environments, seen, **settings):
    """The GPUs that each task makes visible, where each sees the list `seen`."""
    chosen = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(seen))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: chosen.append(devices))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(strategy, "_across_workers", lambda cluster, accelerators: accelerators)
    config = config_lib.from_values({"global_batch_size": 96} | settings)
    for rank in range(len(environments)):
        assert strategy.create_strategy(config, Fakes(environments, rank)) == {"GPU": len(chosen[-1])}
    return chosen


def tasks(nodes, **more):
    return [step(rank, len(nodes), node, **more) for rank, node in enumerate(nodes)]


def test_tasks_of_one_node_share_its_gpus(monkeypatch):
    """SLURM shows all GPUs of a node to all its tasks; two tasks on one GPU would run out of memory, and NCCL refuses."""
    gpus, seen = ["g0", "g1", "g2", "g3"], {"SLURM_STEP_GPUS": "0,1,2,3", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    halves = [["g0", "g1"], ["g2", "g3"]]
    assert devices_of(monkeypatch, tasks(["n1", "n1", "n2", "n2"], **seen), gpus) == halves * 2
    assert devices_of(monkeypatch, tasks(["n1", "n2", "n1", "n2"]), gpus) == [halves[0], halves[0], halves[1], halves[1]]
    assert devices_of(monkeypatch, tasks(["n1", "n2"], **seen), gpus) == [gpus, gpus]
    assert devices_of(monkeypatch, tasks(["n1", "n1", "n1"], **seen), gpus) == [["g0"], ["g1"], ["g2"]]
    assert devices_of(monkeypatch, tasks(["n1", "n1"], **seen), gpus, devices=1) == [["g0"], ["g2"]]


@pytest.mark.parametrize(
    "variables",
    [
        [{"SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}, {"SLURM_STEP_GPUS": "1", "CUDA_VISIBLE_DEVICES": "1"}],
        [{"SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}, {"SLURM_STEP_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}],  # cgroups
        [{"SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": number} for number in "01"],  # set by a script
        [{"SLURMD_TRES_BIND": "gpu:per_task:1", "CUDA_VISIBLE_DEVICES": "0"}] * 2,
        [{"SLURMD_TRES_BIND": "gres/gpu:single:1"}] * 2,
    ],
)
def test_gpus_of_its_own_are_not_shared(monkeypatch, variables):
    """What `--gpus-per-task`, `--gpu-bind` or a script gives a task is for this task."""
    environments = [step(rank, 2, "n1", **more) for rank, more in enumerate(variables)]
    assert devices_of(monkeypatch, environments, ["g"]) == [["g"], ["g"]]


def test_more_tasks_than_gpus(monkeypatch):
    """NCCL's own error says neither why nor what to do. `--gpu-bind=none` gives nobody a GPU of its own."""
    for more in ({}, {"SLURMD_TRES_BIND": "gpu:none"}, {"SLURMD_TRES_BIND": "gpu:verbose,none"}):
        with pytest.raises(SettingError, match="--devices=0: 2 tasks on n1 share 1 GPUs; .*fewer tasks.*--gpus-per-task"):
            devices_of(monkeypatch, tasks(["n1", "n1"], **more), ["g0"])


def test_without_gpus_each_task_computes_on_the_cpu(monkeypatch):
    config, environments = config_lib.from_values({"global_batch_size": 96}), tasks(["n1", "n1"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: None)
    monkeypatch.setattr(strategy, "_across_workers", lambda cluster, accelerators: accelerators)
    assert strategy.create_strategy(config, Fakes(environments, 1)) == {"CPU": 1}


def test_a_lost_task_is_named_as_srun_names_it():
    """Two tasks meet, and one dies: the other's line names task and node."""
    job = clusters(2, job=77)
    (chief, links), (_, other) = together(*((lambda cluster=cluster: meet(cluster)) for cluster in job))
    workers, ended = Workers(chief, {}), []
    workers._end = ended.append
    other[0].close()
    workers._listen(chief.name(1), links[1])
    assert ended[0].startswith(f"task 1 ({chief.addresses[1]}) died") and "start the same srun again" in ended[0]
