"""Commands that the program prints are read by a shell as they were meant."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

from train_lib.cli.commands import main_command, python_command, quoted

WORDS = ["plain", "--workdir=a b", "it's", "$HOME", "~", "", "a\\b", "trailing ", "-", "é", "\n", "a\tb'\\", "\x1b[31m", "\u2028",
         "caf\udce9", "é'\udcff\\x41"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_shell_reads_back_every_word(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w", encoding=encoding))  # noqa: SIM115
    command = "printf '%s\\0' " + " ".join(map(quoted, WORDS))
    assert command.isprintable() and command.encode(encoding)
    read = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert [os.fsdecode(word) for word in read.split(b"\0")[:-1]] == WORDS


@pytest.mark.parametrize(("started", "expected"), [
    (["python", "main.py"], ["{here}/main.py"]),
    (["./.venv/bin/python", "-X", "dev", "../a link/main.py", "--seed=1"], ["-X", "dev", "{here}/../a link/main.py"]),
    (["/usr/bin/python3", "-u", "/opt/main.py", "--workdir=main.py"], ["-u", "/opt/main.py"]),
    (["python", "my_experiments.py"], [str(ROOT / "main.py")]),  # another program has called `train`
])
def test_the_command_has_the_interpreter_its_options_and_the_script_as_they_were_started(started, expected, monkeypatch):
    script = next(index for index, word in enumerate(started) if word.endswith(".py"))
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", started[script:])
    words = subprocess.run(["bash", "-c", f"printf '%s\n' {main_command('--mode=x')}"], capture_output=True, text=True).stdout
    assert words.splitlines() == [sys.executable, *(word.format(here=os.getcwd()) for word in expected), "--mode=x"]


def test_modules_are_started_by_the_same_interpreter():
    assert python_command("-m", "a b") == f"{sys.executable} -m 'a b'"
