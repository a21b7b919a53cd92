"""Which code a run was: its version, its commit, and what was changed since. Does not import TensorFlow."""

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import subprocess

from input_pipeline.common.small_files import read_file, read_json

DIFF, ENVIRONMENT = "code.diff", "environment.json"
ROOT = pathlib.Path(__file__).resolve().parents[2]
LARGEST_DIFF = 2**20  # bytes; the rest is cut off
MOST_UNTRACKED = 100  # names


def record_code(workdir, log):
    """Writes code.diff into a Workdir, or removes it if nothing is changed. Returns what `read_code` says about the code.

    Call it before environment.json is replaced: `log` gets a line if the run was last started with other code.
    """
    about, diff = read_code()
    path, before = workdir.path / DIFF, {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        before = dict(read_json(workdir.path / ENVIRONMENT))
    old_diff = b""
    with contextlib.suppress(OSError, ValueError):
        old_diff = read_file(path)
    fields = ("version", "commit", "untracked")
    if "commit" in before and ([before.get(name) for name in fields], old_diff) != ([about[name] for name in fields], diff):
        log(f"this is other code than before: {in_words(about)}; the run was last started with {in_words(before)}")
    if diff:
        workdir.write_file(DIFF, diff)
    elif workdir.is_ours:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return about


def in_words(about):
    """The code that environment.json describes, shortly."""
    if not about.get("commit"):
        return f"version {about.get('version') or 'unknown'}"
    return f"commit {str(about['commit'])[:10]}{', modified' if about.get('modified') else ''}"


@functools.cache
def read_code(root=ROOT):
    """Returns ({"version", "commit", "modified", "untracked"}, the changes since the commit as the bytes of a diff).

    Outside a git checkout, or without git, only the version is known. "untracked" are the names of files that git would add.
    """
    about, diff = {"version": None, "commit": None, "modified": None, "untracked": []}, b""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about["version"] = importlib.metadata.version("alexnet-loop")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if not _git(root, "ls-files", "main.py"):  # installed below somebody else's checkout
            return about, diff
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        changed = [os.fsdecode(line) for line in _git(root, "status", "--porcelain", "-z", "--", ".").split(b"\0")]
        untracked = [line[3:] for line in changed if line.startswith("?? ")]
        diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--", ".")
        about |= {"commit": commit, "modified": changed != [""], "untracked": untracked[:MOST_UNTRACKED]}
    if len(diff) > LARGEST_DIFF:
        diff = diff[:LARGEST_DIFF] + f"\n... cut off here: the whole diff has {len(diff)} bytes\n".encode()
    return about, diff


def _git(root, *arguments):
    # The checkout may belong to another user: its code is running already, so git need not distrust it.
    command = ["git", "-C", str(root), "-c", "safe.directory=*", "--no-optional-locks", *arguments]
    users = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set while a hook runs
    return subprocess.run(command, capture_output=True, check=True, timeout=20, stdin=subprocess.DEVNULL, env=users).stdout
