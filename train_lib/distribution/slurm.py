"""What SLURM's variables tell a task that `srun` has started: how many there are, where task 0 is, and whose GPUs are whose.

Only what a container has too is used: environment variables, no `scontrol` and no `nvidia-smi`.
"""

import dataclasses
import itertools
import re
import socket
import zlib

# Below the ports that Linux gives to outgoing connections. Two jobs with the same candidates are told apart by their names.
FIRST_PORT, NUM_PORTS, NUM_CANDIDATES = 20000, 10000, 8


@dataclasses.dataclass(frozen=True)
class Step:
    """This process as a task of a step: what one `srun` starts together."""

    name: str  # job and step, which all its tasks have in common and no other task has
    rank: int  # the number of this task, as `srun --label` prints it
    size: int  # how many tasks there are
    node: str  # where this task runs
    hosts: tuple  # where task 0 may run
    gpus: list  # tasks whose lists are equal see the same GPUs

    def ports(self, rank):
        """The ports among which a task looks for a free one, the same in all tasks of this step."""
        hashes = (zlib.crc32(f"{self.name}.{rank}.{number}".encode()) for number in range(NUM_CANDIDATES))
        return tuple(FIRST_PORT + value % NUM_PORTS for value in hashes)


def read_step(environ):
    """The Step that this process is a task of; None unless `srun` has started it together with others.

    A batch script and `salloc` see variables of the job, but none of a step.
    """
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1:
        return None
    hosts = expand_hosts(environ["SLURM_STEP_NODELIST"])
    if environ.get("SLURM_DISTRIBUTION") != "arbitrary":  # every other distribution puts task 0 on the first node
        hosts = hosts[:1]
    name, rank = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}", int(environ["SLURM_PROCID"])
    node, binding = environ.get("SLURMD_NODENAME") or socket.gethostname(), environ.get("SLURMD_TRES_BIND", "")
    is_bound = "gpu:" in binding and "none" not in binding
    # CUDA_VISIBLE_DEVICES alone does not tell: where SLURM confines tasks by cgroups, the first GPU of each is 0.
    gpus = [rank] if is_bound else [node, environ.get("SLURM_STEP_GPUS"), environ.get("CUDA_VISIBLE_DEVICES")]
    return Step(name, rank, size, node, tuple(hosts), gpus)


def expand_hosts(text):
    """The hosts of a list such as "n[1-3,7],rack[0-1]n[08-10]-ib,login", in its order."""
    hosts = []
    for host in re.findall(r"(?:\[[^]]*\]|[^,\[])+", text):
        constant, *ranges = re.split(r"\[([^]]*)\]", host)
        parts = [[constant]] + [_numbers(part) if index % 2 == 0 else [part] for index, part in enumerate(ranges)]
        hosts += map("".join, itertools.product(*parts))
    return hosts


def _numbers(ranges):
    """The numbers of "08-10,12" as text, with leading zeros."""
    pairs = [part.partition("-") for part in ranges.split(",")]
    return [f"{number:0{len(first)}}" for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]
