"""How much memory can be had."""

import os


def free_gigabytes():
    """What can be had without swapping: free memory and the page cache, which often holds the data set's own files."""
    try:
        with open("/proc/meminfo") as lines:
            kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return kibibytes * 1024 / 1e9
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 / 1e9
