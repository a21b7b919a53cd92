"""The shape of the code: what imports what, and what a command line may import. All but two tests only read the source."""

import ast
import pathlib
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGES = ("alexnet", "input_pipeline", "train_lib")
TOP_LEVEL = {"main.py", "setup.cfg", "tests", *PACKAGES,  # what was asked for
             "README.md", "LICENSE", "pyproject.toml", ".gitignore", ".ci", "docs"}  # what tools and readers need besides

# The rooms from the ground up; each may import from its own floor and from those below it. A longer name wins over a shorter one.
FLOORS = (
    ("alexnet",),
    ("input_pipeline.common",),
    ("input_pipeline.config",),
    ("input_pipeline.images",),
    ("input_pipeline.sources",),
    ("input_pipeline.splits",),
    ("train_lib.config",),
    # The mathematics, and beside it the command line, neither of which knows the other.
    ("train_lib.schedules", "train_lib.cadence", "train_lib.optimizers", "train_lib.metrics", "train_lib.augment",
     "train_lib.rand_augment"),
    ("train_lib.steps",),
    ("train_lib.inner_loop", "train_lib.state"),
    ("train_lib.cli", "train_lib.hooks"),
    ("train_lib.checkpoints", "train_lib.distribution", "train_lib.records"),
    # The story.
    ("train_lib.setup", "train_lib.evaluate", "train_lib.train"),
    ("train_lib.modes",),
    ("main",),
)
# The networks know no data and no loop; the input knows no network.
NEVER = {("alexnet", "input_pipeline"), ("alexnet", "train_lib"), ("input_pipeline", "alexnet"), ("input_pipeline", "train_lib")}
# Flags are checked by these modules, in under a second.
WITHOUT_TENSORFLOW = (
    "alexnet", "alexnet.names", "input_pipeline.config", "input_pipeline.common.settings", "input_pipeline.common.errors",
    "train_lib.config", "train_lib.cli.flags", "train_lib.records.workdir", "train_lib.distribution.cluster",
    "train_lib.records.lock", "train_lib.cli.signals", "main",
)
# The budget of the rooms that nobody needs to enter for research. Files that people edit have none.
LONGEST_FUNCTION, LONGEST_FILE = 60, 350

FILES = [ROOT / "main.py", *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(), str(path)) for path in FILES}
ROOMS_BEHIND = [path for path in TREES if path.count("/") > 1]


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path) for path in TREES}


def imports(path, everywhere=True):
    """The modules that a file imports; `from package import module` names the module. Without `everywhere`: at import time."""
    tree = TREES[path]
    inside = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if node in inside and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def floor_of(module):
    """The number of a module's floor; None for a module that is not in a room, which only tells what a package is."""
    rooms = [(len(room), floor) for floor, names in enumerate(FLOORS) for room in names if f"{module}.".startswith(f"{room}.")]
    return max(rooms)[1] if rooms else None


def dotted(node):
    """The dotted name of an expression such as tf.float32; empty for any other."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", TREES)
def test_imports_point_down_between_rooms(path):
    own = module_name(path)
    ours = {name for name in imports(path) if name.split(".")[0] in (*PACKAGES, "main", "tests")}
    for name in ours:
        assert (own.split(".")[0], name.split(".")[0]) not in NEVER, f"{own} imports {name}"
        if floor_of(own) is not None and floor_of(name) is not None:
            assert floor_of(name) <= floor_of(own), f"{own} imports {name}, which is in a room above it"


def test_the_rooms_are_those_that_exist():
    """A room that was renamed would no longer be looked at."""
    for room in (room for names in FLOORS for room in names):
        assert any(f"{module}.".startswith(f"{room}.") for module in MODULES), room


def test_no_module_imports_itself_in_a_circle():
    below = {module_name(path): imports(path) & MODULES for path in TREES}

    def walk(name, way):
        assert name not in way, " -> ".join([*way, name])
        for other in sorted(below[name]):
            if other not in done:
                walk(other, [*way, name])
        done.add(name)

    done = set()
    for name in sorted(below):
        walk(name, [])
    assert done == MODULES


def test_only_main_reads_flags():
    """A setting that is read from a global deep down cannot be passed in by a test or a notebook."""
    for path, tree in TREES.items():
        if path == "main.py":
            continue
        for node in ast.walk(tree):
            named = {alias.name for alias in node.names} if isinstance(node, (ast.Import, ast.ImportFrom)) else {dotted(node)}
            assert not any(name.split(".")[-1] == "FLAGS" for name in named), f"{path}:{node.lineno} reads FLAGS"
        if path != "train_lib/cli/flags.py":
            assert not {name for name in imports(path) if name.startswith("absl") and name != "absl.logging"}, path


def test_only_main_ends_the_process():
    """A library that exits takes the notebook with it. The second signal of an impatient user is the one exception."""
    for path, tree in TREES.items():
        if path in ("main.py", "train_lib/cli/signals.py"):
            continue
        called = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"sys.exit", "exit", "quit", "os._exit", "os.abort"}, path


@pytest.mark.parametrize("path", ROOMS_BEHIND)
def test_the_rooms_behind_keep_to_their_budget(path):
    assert len((ROOT / path).read_text().splitlines()) <= LONGEST_FILE
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert all(length <= LONGEST_FUNCTION for length in lengths.values()), lengths


@pytest.mark.parametrize("path", ROOMS_BEHIND)
def test_what_is_public_says_what_it_is_for(path):
    tree = TREES[path]
    if not tree.body:
        return
    assert ast.get_docstring(tree), path
    owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    for owner in owners:
        for node in owner.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                inherited = isinstance(owner, ast.ClassDef) and owner.bases
                assert ast.get_docstring(node) or inherited, f"{path}:{node.lineno}: {node.name} has no docstring"


def test_nothing_else_is_at_the_top_level():
    """Of what git tracks; a user's own files beside it are theirs."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = {pathlib.PurePath(name).parts[0] for name in done.stdout.split("\0") if name}
    assert tracked <= TOP_LEVEL


def test_tests_are_in_the_rooms_of_what_they_test():
    for path in (ROOT / "tests").rglob("test_*.py"):
        room = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / room).is_dir(), f"{path.relative_to(ROOT)}: there is no {room}/ to be tested"


def test_the_command_line_needs_no_tensorflow():
    """Importing it takes seconds, and a misspelled flag must be answered at once."""
    lines = [
        "import importlib, sys",
        f"for name in {WITHOUT_TENSORFLOW!r}:",
        "    importlib.import_module(name)",
        "    heavy = {'tensorflow', 'keras', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)",
        "    assert not heavy, (name, heavy)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_nor_does_anything_that_it_imports(name):
    """By the source: says which line is at fault, where the test above only says that one is."""
    paths = {module_name(path): path for path in TREES}
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        below = imports(paths[module], everywhere=False)
        assert not {"tensorflow", "keras"} & {other.split(".")[0] for other in below}, f"{module} imports TensorFlow"
        waiting += [other for other in below if other in paths]
