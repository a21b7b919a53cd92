"""Which code a run was, in checkouts made for the test, by git itself."""

import configparser
import json
import os
import subprocess

import pytest
from helpers import ROOT

from train_lib.records import code
from train_lib.records.workdir import Workdir

READ_CODE = code.read_code.__wrapped__  # without the cache


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "main.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("runs/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def start(checkout, tmp_path, monkeypatch):
    """Starts a run of the checkout's present code; returns (what environment.json then says, the lines that are printed)."""

    def start():
        lines = []
        about = code.record_code(workdir, lines.append)
        workdir.write_json("environment.json", about)
        return about, lines

    monkeypatch.setattr(code, "read_code", lambda: READ_CODE(checkout))
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    return start


def test_an_unmodified_checkout_is_its_commit(checkout, start, tmp_path):
    (checkout / "runs").mkdir()
    (checkout / "runs" / "ignored").touch()
    about, lines = start()
    assert about["commit"] == git(checkout, "rev-parse", "HEAD") and about["modified"] is False and about["untracked"] == []
    assert about["version"] and lines == [] and not (tmp_path / "run" / "code.diff").exists()
    assert start()[1] == []  # nothing to say about the same code


def test_a_modified_checkout_leaves_a_diff_that_git_applies(checkout, start, tmp_path):
    start()
    (checkout / "main.py").write_text("print(2)\n")
    (checkout / os.fsdecode(b"caf\xe9.py")).touch()
    about, lines = start()
    short = git(checkout, "rev-parse", "HEAD")[:10]
    assert about["modified"] is True and about["untracked"] == [os.fsdecode(b"caf\xe9.py")]
    assert lines == [f"this is other code than before: commit {short}, modified; the run was last started with commit {short}"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["untracked"] == about["untracked"]
    git(checkout, "checkout", "-q", "main.py")
    git(checkout, "apply", str(tmp_path / "run" / "code.diff"))
    assert (checkout / "main.py").read_text() == "print(2)\n"
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "second")
    about, lines = start()
    assert len(lines) == 1 and about["modified"] is False and not (tmp_path / "run" / "code.diff").exists()


def test_another_change_is_other_code_too(checkout, start):
    (checkout / "main.py").write_text("print(2)\n")
    start()
    (checkout / "main.py").write_text("print(3)\n")
    assert len(start()[1]) == 1


def test_a_large_diff_is_cut_off_and_says_so(checkout, start, tmp_path):
    (checkout / "main.py").write_text("x = 0\n" * 2**18)
    start()
    diff = (tmp_path / "run" / "code.diff").read_bytes()
    assert len(diff) < code.LARGEST_DIFF + 100 and diff.splitlines()[-1].startswith(b"... cut off here: the whole diff has 1")


@pytest.mark.parametrize("case", ["no checkout", "no git", "below another checkout", "no commit yet"])
def test_elsewhere_the_version_is_known(case, checkout, tmp_path, monkeypatch):
    folder = checkout
    if case == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif case == "below another checkout":
        folder = checkout / "runs" / "site-packages"
        folder.mkdir(parents=True)
        (folder / "main.py").touch()
    else:
        folder = tmp_path / "other"
        folder.mkdir()
        if case == "no commit yet":
            git(folder, "init", "-q")
    about, diff = READ_CODE(folder)
    assert about["commit"] is None and about["modified"] is None and diff == b""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert code.in_words(about) == f"version {setup['metadata']['version']}"
