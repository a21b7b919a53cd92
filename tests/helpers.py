"""The repository's folder, and main.py as users run it."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_main(*arguments, timeout=300, cwd=None, env=None):
    """Runs main.py in a process of its own; returns the CompletedProcess with text output."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | (env or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment)
