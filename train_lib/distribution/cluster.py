"""Which machines train together: those of TF_CONFIG, or the tasks of `srun`. Checked before TensorFlow is imported."""

import dataclasses
import json

from input_pipeline.common.errors import ExpectedError, SettingError
from input_pipeline.common.small_files import parse_json
from train_lib.config import check_shares
from train_lib.distribution.slurm import Step, read_step

TASK_TYPES = ("chief", "worker")
EXAMPLE = '{"cluster": {"worker": ["a.example:2222", "b.example:2222"]}, "task": {"type": "worker", "index": 0}}'
OLDER_NAMES = {"master": "chief"}
OTHER_TASKS = {  # what TensorFlow knows besides, and why nobody needs it here
    "ps": "there are no parameter servers here, because the workers average their gradients among themselves; leave `ps` out of "
          "`cluster`, and do not start those tasks",
    "evaluator": "the workers evaluate themselves; leave `evaluator` out of `cluster`, and do not start that task",
}
NO_SUCH_TASKS = f"only {' and '.join(TASK_TYPES)} tasks train, remove the others"
LONGEST_VALUE = 300  # characters of TF_CONFIG in an error


class ClusterError(ExpectedError):
    """TF_CONFIG, or another environment variable, has a value that cannot work."""

    exit_code = 2

    def __init__(self, value, remedy, name="TF_CONFIG"):
        shown = value if len(value) <= LONGEST_VALUE else value[:LONGEST_VALUE] + "..."
        super().__init__(f"{name}={shown}: {remedy}")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several workers that train as one."""

    # (type, index, address) of each worker, in the order of their ranks; the first, the chief, writes the workdir. The addresses
    # of SLURM's tasks are not known until they have met; until then there is a host or None.
    tasks: tuple
    rank: int  # which of them this process is
    step: Step | None = None  # if SLURM has started them

    @property
    def addresses(self):
        """host:port of every worker, in the order of their ranks."""
        return tuple(address for _, _, address in self.tasks)

    @property
    def identity(self):
        """What all workers of a cluster have in common and no other cluster has, as JSON can hold it."""
        return self.step.name if self.step else list(self.addresses)

    @property
    def several(self):
        """Why this process is not alone, in words."""
        return f"SLURM started {len(self.tasks)} tasks" if self.step else f"TF_CONFIG names {len(self.tasks)} workers"

    @property
    def again(self):
        """What to do after a worker was lost, in words."""
        return "start the same srun again" if self.step else "start the same command on all workers"

    def spec(self):
        """{task type: [address, ...]}, as TensorFlow takes it."""
        return {kind: [address for other, _, address in self.tasks if other == kind] for kind, _, _ in self.tasks}

    def name(self, rank):
        """What errors call a worker."""
        kind, index, address = self.tasks[rank]
        return f"{'task' if self.step else kind} {index}{f' ({address})' if address else ''}"

    def error(self, remedy):
        """A ClusterError about the variables of this process."""
        name, value = ("SLURM_PROCID", str(self.rank)) if self.step else ("TF_CONFIG", json.dumps(self.spec()))
        return ClusterError(value, remedy, name)

    def candidates(self, rank):
        """The addresses at which this worker itself, or the chief, may listen, in the order to try."""
        if self.step is None:
            return (self.addresses[rank],)
        hosts = (self.step.node,) if rank == self.rank else self.step.hosts
        return tuple(f"{host}:{port}" for port in self.step.ports(rank) for host in hosts)

    def at(self, addresses):
        """This cluster with the addresses at which the workers have met."""
        return dataclasses.replace(self, tasks=tuple(
            (kind, index, address) for (kind, index, _), address in zip(self.tasks, addresses, strict=True)))


def split_address(address):
    """(host, port) of "host:port", without the brackets of an IPv6 host."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def read_cluster(environ):
    """The Cluster that TF_CONFIG, or without it SLURM, describes in `environ`, a dict; None if this machine trains alone.

    Raises ClusterError if the value is not what TensorFlow documents, or names tasks that do not train.
    """
    value = environ.get("TF_CONFIG", "").strip()
    if not value:
        try:
            step = read_step(environ)
        except (KeyError, ValueError) as error:  # variables that a container or a script has passed on in part
            size = environ["SLURM_STEP_NUM_TASKS"]
            remedy = f"the other variables of srun are missing or damaged ({error}); pass on all of them, or none"
            raise ClusterError(size, remedy, "SLURM_STEP_NUM_TASKS") from None
        return _cluster_of(step) if step else None
    try:
        content = parse_json(value)
    except ValueError as error:
        raise ClusterError(value, f"is not JSON ({error}); give {EXAMPLE}") from None
    if not isinstance(content, dict | None):
        raise ClusterError(value, f"needs a `cluster` and a `task`; give {EXAMPLE}")
    content = content or {}
    addresses = _addresses(value, content.get("cluster") or {})
    tasks = tuple((kind, index, address) for kind in TASK_TYPES for index, address in enumerate(addresses.get(kind, ())))
    if len(tasks) <= 1:  # launchers set TF_CONFIG for one machine too, with or without a `task`
        return None
    _check_addresses(value, addresses)
    return Cluster(tasks, _rank(value, content.get("task"), addresses, tasks))


def _cluster_of(step):
    """The Cluster of SLURM's tasks. TensorFlow calls all of them workers."""
    host = step.hosts[0] if len(step.hosts) == 1 else None
    return Cluster(tuple(("worker", rank, None if rank else host) for rank in range(step.size)), step.rank, step)


def _addresses(value, cluster):
    """{task type: [address, ...]}, without types that have none. Raises ClusterError if it names tasks of another type."""
    if not isinstance(cluster, dict):
        raise ClusterError(value, f"`cluster` must map task types to lists of addresses; give {EXAMPLE}")
    merged = {}
    for kind, addresses in cluster.items():
        kind = OLDER_NAMES.get(kind, kind)
        if not addresses:  # launchers list all types that they know
            continue
        if not isinstance(addresses, list):
            raise ClusterError(value, f"`cluster` needs a list of addresses under {kind!r}; give {EXAMPLE}")
        if kind not in TASK_TYPES:
            raise ClusterError(value, f"names {kind!r} tasks; {OTHER_TASKS.get(kind, NO_SUCH_TASKS)}")
        merged[kind] = merged.get(kind, []) + addresses
    return merged


def _rank(value, task, addresses, tasks):
    """The rank of the task that this process is."""
    if not isinstance(task, dict):
        raise ClusterError(value, f"needs a `task`; give {EXAMPLE}")
    kind, index = task.get("type"), task.get("index")
    if isinstance(index, str) and index.isdecimal():  # as some launchers write it
        index = int(index)
    kind = OLDER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in list(addresses):  # a list, because `kind` may be of any type
        named = OTHER_TASKS.get(kind) if isinstance(kind, str) else None
        remedy = named or f"give one that `cluster` names: {' or '.join(addresses)}"
        raise ClusterError(value, f"`task` has the type {kind!r}; {remedy}")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(addresses[kind]):
        raise ClusterError(value, f"`task` has the index {index!r}; give one from 0 to {len(addresses[kind]) - 1}")
    return tasks.index((kind, index, addresses[kind][index]))


def _check_addresses(value, cluster):
    """Raises ClusterError unless there is at most one chief, and a valid address for each worker that no other has."""
    everything = [address for addresses in cluster.values() for address in addresses]
    for address in everything:
        if not _is_address(address):
            raise ClusterError(value, f"{address!r} is no address; give host:port with a port from 1 to 65535")
    if len(cluster.get("chief", [])) > 1:
        raise ClusterError(value, "names more than one chief (`master` is its older name); leave one, make the others workers")
    for address in everything:
        if everything.count(address) > 1:
            raise ClusterError(value, f"names {address} more than once; give every worker an address of its own")


def _is_address(address):
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    is_host = host and not set(host) & set(" \t/@") and (":" not in host or (host[0] == "[" and host[-1] == "]"))
    return bool(colon and is_host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535)


def check_settings(config, cluster):
    """Raises SettingError if a setting cannot work on several workers. `create_strategy` checks what depends on the devices."""
    several, one_out = cluster.several, "start one task, or leave it out" if cluster.step else "leave one of them out"
    if config.general.workdir is None:
        raise SettingError("workdir", None, f"{several}; give all of them one folder that they all see")
    if config.general.debug:
        raise SettingError("debug", True, f"runs on one device, and {several}; {one_out}")
    if config.device.virtual_devices > 1:
        raise SettingError(
            "virtual_devices", config.device.virtual_devices, f"splits the CPU of one machine, and {several}; {one_out}")
    check_shares(config, len(cluster.tasks))
