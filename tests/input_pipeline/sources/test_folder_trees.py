"""--dataset=folder:PATH on trees that hypothesis makes up, against a second implementation of the rules, written from their text.

The files are empty: a tree is only listed here. tests/input_pipeline/sources/test_folder.py has each rule by hand.
"""

import collections
import os
import pathlib
import re
import tempfile
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from input_pipeline import sources
from input_pipeline.common.errors import ExpectedError, UnusableError
from input_pipeline.config import DataConfig

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")


def nfc(path):
    return unicodedata.normalize("NFC", path.name)


# --- the rules, once more -----------------------------------------------------------------------------------------------------


def around(path, root):
    """The real folders that contain `path`: of the way from the root, and of the place where each link on it leads."""
    way = [path, *path.parents][: len(path.relative_to(root).parts) + 1]
    return {parent for part in way for parent in part.resolve().parents} | {part.resolve() for part in way[1:]}


def entries(folder):
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name != "__MACOSX"]


def subfolders(folder, root):
    return [path for path in entries(folder) if path.is_dir() and path.resolve() not in around(path, root)]


def tree(folder, root, seen=None):
    """The folders at and below `folder`, each real one once."""
    seen = around(folder, root) if seen is None else seen
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    return [folder, *(below for child in subfolders(folder, root) for below in tree(child, root, seen))]


def images(folder):
    return [path for path in entries(folder) if not path.is_dir() and path.name.lower().endswith(ENDINGS)]


def all_images(folder, root):
    return [path for below in tree(folder, root) for path in images(below)]


def classes_of(folder, root):
    return [child for child in subfolders(folder, root) if all_images(child, root)]


def names_of(folder, root):
    return {nfc(child) for child in classes_of(folder, root)}


def has_split_layout(folder, root):
    children = [child for child in subfolders(folder, root) if classes_of(child, root)]
    named = [child for child in children if child.name.lower() in SPLITS]
    rest = [child for child in children if child not in named]
    if not named:
        return False
    if len(named) >= 2 or not rest:
        return True
    return any(names_of(named[0], root) & names_of(other, root) for other in rest)


def layout(root, asked):
    """{split: its folder}, {None: root} if the folders are classes, or a word of the error; `asked` is the split of the flag."""
    children = classes_of(root, root)
    if not children:
        return "give the folder above"
    divided = [child for child in children if classes_of(child, root)]
    split_layout = has_split_layout(root, root) or any(nfc(child) == asked and asked not in SPLITS for child in divided)
    if len(divided) == 1 or not split_layout:
        for child in divided:
            if has_split_layout(child, root) or (len(children) == 1 and not split_layout and not images(child)):
                return f"give folder:{child}"
    if all(child.name.lower() in SPLITS for child in children) and not divided:
        return "no class folders there"
    parts = [part for child in divided for part in classes_of(child, root)]
    if (split_layout or divided == children) and all(part.name.lower() in SPLITS for part in parts):
        return "where classes are expected"
    if not split_layout:
        return {None: root}
    return {nfc(child): child for child in children}


def expected(root, asked):
    """(classes, {split: {class: real images}}, unusable splits, counts) of a tree, or a word of the error that it must give."""
    others = collections.Counter()
    for folder in tree(root, root):
        for path in entries(folder):
            if path.is_symlink() and not path.exists() and not path.name.lower().endswith(ENDINGS):
                if len(folder.relative_to(root).parts) < 2 or not path.suffix:
                    return "restore what it points to"
                others[path.suffix.lower()] += 1
            elif not path.is_dir() and not path.name.lower().endswith(ENDINGS):
                others[path.suffix.lower()] += 1
    splits = layout(root, asked)
    if isinstance(splits, str):
        return splits
    trains = [name for wanted in (*SPLITS[:2], None) for name in sorted(splits, key=str, reverse=True)
              if (name.lower() if name else None) == wanted and classes_of(splits[name], root)]
    deciding = [splits[trains[0]]] if trains else list(splits.values())
    written = sorted((part.name, nfc(part)) for folder in deciding for part in classes_of(folder, root))
    names = list(dict.fromkeys(name for _, name in written))
    for folder in deciding:
        if classes_of(folder, root) and {nfc(child) for child in subfolders(folder, root)} - set(names):
            return "fill it or remove it"
    unusable = {name for name, folder in splits.items() if not classes_of(folder, root) or names_of(folder, root) - set(names)}
    found, broken = {}, set()
    for split in splits.keys() - unusable:
        found[split or "train"] = collections.defaultdict(set)
        for part in classes_of(splits[split], root):
            for path in all_images(part, root):
                if path.exists():
                    found[split or "train"][nfc(part)].add(path.parent.resolve() / path.name)
                else:
                    broken.add(str(path))
    if not any(part for split in found.values() for part in split.values()):
        return "contains no example"
    if len(names) == 1:
        return "has one class"
    strays = len(images(root)) + sum(
        len(images(folder)) for folder in splits.values() if folder != root and classes_of(folder, root))
    return names, found, unusable, {"strays": strays, "others": others.total(), "broken": broken}


# --- trees ----------------------------------------------------------------------------------------------------------------------

CLASSES = ("cat", "dog", "café", unicodedata.normalize("NFD", "café"), "Owl")
NAMES = st.sampled_from((*CLASSES, "train", "Test", "VAL", "training", "fold1", "fold2", "photos", ".git", "__MACOSX"))
FILES = st.sampled_from((
    "1.png", "2.JPG", "3.Jfif", "4.webp", "5.GIF", "6.jpe", "1.heic", "x.txt", "README", ".DS_Store", "._1.png"))
TARGETS = st.sampled_from((".", "..", "../..", "../dog", "../../train/dog", "../../Test", "nowhere", "1.png", "self"))
LINKS = st.sampled_from(("a", "dog", "test", "link.png", "link.txt"))
LAYOUTS = (
    [f"{split}/{name}" for split in ("train", "Test") for name in ("cat", "dog")],
    [f"{split}/{name}" for split in ("training", "VAL") for name in ("cat", CLASSES[2])],
    ["cat", "dog", CLASSES[3]],
    [f"{fold}/{name}" for fold in ("fold1", "fold2") for name in ("cat", "dog")],
    ["photos/cat", "photos/dog"],
    ["photos/train/cat", "photos/train/dog"],
    ["train", "cat"],
    [],
)


@st.composite
def plans(draw):
    """A tree as {path: target of the link, or None for a file or an empty folder}: a usual layout, and what disturbs it."""
    folders = list(draw(st.sampled_from(LAYOUTS)))
    plan = {f"{folder}/{draw(FILES) if draw(st.integers(0, 4)) == 4 else '1.png'}": None for folder in folders}
    for _ in range(draw(st.integers(0, 6))):
        base = draw(st.sampled_from(["", *folders, *(os.path.dirname(folder) for folder in folders)]))
        middle = "/".join(draw(st.lists(NAMES, max_size=3 - base.count("/") - bool(base))))
        kind = draw(st.integers(0, 9))
        if kind < 6:
            plan[os.path.normpath(f"{base}/{middle}/{draw(FILES)}").lstrip("/")] = None
        elif kind < 9:
            plan[os.path.normpath(f"{base}/{middle}/{draw(LINKS)}").lstrip("/")] = draw(TARGETS)
        else:
            plan[os.path.normpath(f"{base}/{middle}/{draw(NAMES)}").lstrip("/") + "/"] = None
    return plan


def build(root, plan):
    for name, target in plan.items():
        path = root / name
        try:
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if target and not os.path.lexists(path):
                path.symlink_to(path.name if target == "self" else target)
            elif not name.endswith("/") and not os.path.lexists(path):
                path.touch()
        except OSError:
            continue  # an earlier name of the plan is in the way, such as a link to nowhere


def noted(pattern, notes):
    """The number in the note that matches a pattern, 0 without one."""
    matches = [re.match(pattern, note) for note in notes]
    return sum(int(match[1]) for match in matches if match)


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plans(), st.sampled_from(("train", "fold1", "photos", "café")))
def test_what_is_read_is_what_the_rules_say_and_a_line_tells_of_the_rest(plan, asked):
    """Of any tree, the classes and the images per class and split; what is not among them is in a note, a list or an error."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve() / "set"
        root.mkdir()
        build(root, plan)
        rules = expected(root, asked)
        try:
            source = sources.open_source(DataConfig(dataset=f"folder:{root}", train_split=asked, max_bad_examples=999))
        except ExpectedError as error:
            assert isinstance(rules, str) and rules in str(error), (rules, error)
            assert "max_bad_examples" not in str(error) and "\n" not in str(error)
            return
        assert not isinstance(rules, str), rules
        names, found, unusable, counts = rules
        assert source.class_names == tuple(names)
        read = {split: collections.defaultdict(set) for split in source.examples}
        for split, examples in source.examples.items():
            for example in examples:
                path = pathlib.Path(os.fsdecode(example.image))
                read[split][source.class_names[example.label]].add(path.parent.resolve() / path.name)
            assert source.num_examples(split, "train_split") == sum(map(len, read[split].values()))
        assert read == found
        assert set(source.bad.found) == counts["broken"]
        assert noted(r"skipped (\d+) images? beside", source.notes) == counts["strays"]
        assert noted(r"skipped (\d+) files? in other formats", source.notes) == counts["others"]
        for split in unusable:
            assert any(note.startswith(f"the split {split} cannot be used: {root}") for note in source.notes)
            try:
                source.num_examples(split, "test_split")
                raise AssertionError(f"{split} can be used")
            except UnusableError as error:
                assert str(error).startswith(f"--test_split={split}: {root}")
