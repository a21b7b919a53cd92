"""How much memory the host can give to this process."""

import os
import pathlib

# What a container or a batch system allows, what is used of it, and the page cache in that: control groups, version 2 and 1.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"),
)


def free_gigabytes(root="/"):
    """What can be had without swapping: free memory and the page cache, which often holds the data set's own files.

    Where the process's control group has a limit, no more than is left of that.
    """
    try:
        free = _entry(pathlib.Path(root, "proc/meminfo"), "MemAvailable:") * 1024
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = pathlib.Path(root, "sys/fs/cgroup")
    for limit, used, statistics, cached in _GROUPS:
        try:
            limit, used = int((group / limit).read_text()), int((group / used).read_text())
            free = min(free, max(limit - used + _entry(group / statistics, cached), 0))
        except (OSError, ValueError, StopIteration):  # no such group, or the limit is "max"
            continue
    return free / 1e9


def _entry(file, name):
    lines = (line.split() for line in file.read_text().splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)
