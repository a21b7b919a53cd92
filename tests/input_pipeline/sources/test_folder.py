"""--dataset=folder:PATH: which folders are splits and classes, what is read, and a line about all that is not."""

import collections
import hashlib
import os
import unicodedata

import pytest
from source_files import CLASSES, write_folder

from input_pipeline import sources
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
FLAT = ("train/cat/1.png", "train/dog/2.png")  # beside which other things are put


def plant(root, *files):
    """Creates empty files; a name that ends with / is a folder, and "a -> b" a link."""
    for file in files:
        name, _, target = file.partition(" -> ")
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif not name.endswith("/"):
            path.write_bytes(b"")
    return root


def open_(root, limit=0, **flags):
    return sources.open_source(DataConfig(dataset=f"folder:{root}", max_bad_examples=limit, **flags))


def read(source, root):
    """{split: {class: the sorted names of its files below `root`}} of a Source."""
    found = {}
    for split, examples in source.examples.items():
        found[split] = {}
        for example in examples:
            name = os.path.relpath(os.fsdecode(example.image), root)
            found[split].setdefault(source.class_names[example.label], []).append(name)
        found[split] = {name: sorted(files) for name, files in found[split].items()}
    return found


def reads(root, limit=0, **flags):
    """What is read of a tree, {split: {class: how many files}}, and the notes in one text."""
    source = open_(root, limit, **flags)
    counts = {split: {name: len(files) for name, files in part.items()} for split, part in read(source, root).items()}
    return counts, "\n".join(source.notes)


def message_of(error, function, *arguments, **more):
    """The message of the error that a call raises, which must be one line."""
    with pytest.raises(error) as caught:
        function(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LAYOUTS = {
    "splits": (("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png"),
               {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}}),
    "classes": (("cat/1.png", "cat/2.png", "dog/1.png"), {"train": {"cat": 2, "dog": 1}}),
    "split names in any case": (("Train/cat/1.png", "Train/dog/1.png", "VAL/cat/1.png", "VAL/dog/1.png"),
                                {"Train": {"cat": 1, "dog": 1}, "VAL": {"cat": 1, "dog": 1}}),
    "a class called train": (("train/1.png", "bus/1.png", "plane/1.png"), {"train": {"bus": 1, "plane": 1, "train": 1}}),
    "a class called train with subfolders": (("train/steam/1.png", "bus/city/1.png", "plane/jet/1.png"),
                                             {"train": {"bus": 1, "plane": 1, "train": 1}}),
    "a flat test folder": ((*FLAT, "test/1.png"), {"train": {"cat": 1, "dog": 1}}),
    "a flat folder of any name": ((*FLAT, "test/cat/1.png", "unlabeled/1.png"),
                                  {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1}}),
    "the same folders in all classes": (("cat/wild/1.png", "cat/tame/1.png", "dog/wild/1.png", "dog/tame/1.png"),
                                        {"train": {"cat": 2, "dog": 2}}),
    "a split and other folders with pictures": ((*FLAT, "test/cat/1.png", "docs/figures/1.png"),
                                                {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1}}),
    "a split of any name beside train": ((*FLAT, "extra/dog/1.png"), {"train": {"cat": 1, "dog": 1}, "extra": {"dog": 1}}),
    "subfolders of different names": (("cats/wild/1.png", "dogs/kaggle/1.png"), {"train": {"cats": 1, "dogs": 1}}),
    "subfolders and images beside them": (("cats/wild/1.png", "cats/2.png", "dogs/wild/1.png"),
                                         {"train": {"cats": 2, "dogs": 1}}),
    "any depth": ((*FLAT, "train/cat/a/b/c/d/3.png", "test/cat/a/4.png", "test/dog/5.png"),
                  {"train": {"cat": 2, "dog": 1}, "test": {"cat": 1, "dog": 1}}),
    "only subfolders hold images": (("train/cat/a/1.png", "train/cat/b/1.png", "train/dog/a/1.png"),
                                    {"train": {"cat": 2, "dog": 1}}),
    "hidden names": ((*FLAT, ".cache/a/1.png", "train/.thumbs/1.png", "train/cat/.t/1.png", "train/cat/._1.png", "train/.3.png"),
                     {"train": {"cat": 1, "dog": 1}}),
    "macOS": (("cat/1.png", "dog/1.png", "__MACOSX/cat/1.png", "cat/__MACOSX/1.png"), {"train": {"cat": 1, "dog": 1}}),
    "splits without a common class": ((*FLAT, "test/owl/1.png", "docs/figures/1.png"), {"train": {"cat": 1, "dog": 1}}),
    "Train decides about the classes": (("Train/cat/1.png", "Train/dog/1.png", "test/owl/1.png"),
                                        {"Train": {"cat": 1, "dog": 1}}),
    "classes of classes": (("animals/cat/wild/1.png", "animals/dog/wild/1.png", "vehicles/car/old/1.png"),
                           {"train": {"animals": 2, "vehicles": 1}}),
    "training": (("training/cat/1.png", "training/dog/1.png", "testing/dog/2.png"),
                 {"training": {"cat": 1, "dog": 1}, "testing": {"dog": 1}}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_tree_means(tmp_path, name):
    """A wrong guess trains a classifier of other classes than the user's, and no error says so."""
    files, expected = LAYOUTS[name]
    assert reads(plant(tmp_path, *files))[0] == expected


@pytest.mark.parametrize("flags", [{"train_split": "fold1[:50%]"}, {"test_split": "fold2"}, {"validation_split": "train+fold1"}])
def test_splits_of_any_name_are_those_that_a_flag_names(tmp_path, flags):
    """Without a flag, nothing tells folds with the same classes from classes with the same subfolders."""
    plant(tmp_path, "fold1/cat/1.png", "fold1/dog/1.png", "fold2/cat/1.png", "fold2/dog/1.png")
    assert reads(tmp_path, **flags)[0] == {"fold1": {"cat": 1, "dog": 1}, "fold2": {"cat": 1, "dog": 1}}
    counts, notes = reads(tmp_path)
    assert counts == {"train": {"fold1": 2, "fold2": 2}} and "read as classes" in notes


def test_a_single_split_of_another_name(tmp_path):
    plant(tmp_path, "photos/cat/1.png", "photos/dog/1.png")
    assert reads(tmp_path, train_split="photos")[0] == {"photos": {"cat": 1, "dog": 1}}


def test_every_ending_that_is_decoded_is_read_in_any_case(tmp_path):
    """Photos saved by a browser end in .jfif or .webp, and a class of them was empty before."""
    endings = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif")
    plant(tmp_path, *(f"{name}/{ending}.{change(ending)}" for name in ("cat", "dog") for ending in endings
                      for change in (str.lower, str.upper, str.title)))
    assert reads(tmp_path) == ({"train": {"cat": 24, "dog": 24}}, "")


def test_other_files_are_counted_by_their_endings(tmp_path):
    """Phones save .heic; a class of them would be smaller than it looks."""
    plant(tmp_path, *FLAT, "readme", "train/cat/1.HEIC", "train/cat/2.heic", "train/dog/x/3.txt", "notes/a.TIFF", "notes/.b.txt",
          "train/__MACOSX/4.txt")
    assert reads(tmp_path) == ({"train": {"cat": 1, "dog": 1}}, "skipped 5 files in other formats: 2 .heic, 1 without ending, "
                               "1 .tiff, 1 .txt; convert .heic, .tiff to PNG or JPEG")
    many = [f"train/cat/{index}.{ending}" for ending in "abcdefg" for index in range(1 + (ending == "g"))]
    assert "8 .g" not in reads(plant(tmp_path, *many))[1]
    assert "skipped 13 files in other formats: 2 .g, 2 .heic, 1 without ending, 1 .a, 1 .b, ...; convert" in reads(tmp_path)[1]


@pytest.mark.parametrize(("files", "count", "first"), [
    ((*FLAT, "train/montage.png"), 1, "train/montage.png"),
    ((*FLAT, "b.png", "a.png", "train/z.gif"), 3, "a.png"),
    (("cat/1.png", "dog/1.png", "preview.JPG"), 1, "preview.JPG"),
])
def test_images_beside_class_folders_are_counted(tmp_path, files, count, first):
    """One picture in a split's folder made classes of the splits before."""
    counts, notes = reads(plant(tmp_path, *files))
    assert counts == {"train": {"cat": 1, "dog": 1}}
    images = "image" if count == 1 else "images"
    assert notes == f"skipped {count} {images} beside class folders, the first is {tmp_path / first}"


@pytest.mark.parametrize(("files", "note"), [
    (("train/1.png", "bus/1.png"), "{0}/train is read as a class, not as a split"),
    (("cats/wild/1.png", "cats/2.png", "dogs/wild/1.png"),
     "the folders in {0} are read as classes, with the images in their subfolders (wild); --train_split=cats would read them as "
     "splits"),
    ((*FLAT, "test/cat/1.png"), "test has no image of 1 of 2 classes: dog"),
    (("a/cat/1.png", "a/dog/1.png", "b/dog/2.png", "b/owl/1.png"),
     "a has no image of 1 of 3 classes: owl\nb has no image of 1 of 3 classes: cat"),
    ((*FLAT, "bus/1.png", "bus/2.png"), "the split bus cannot be used: {0}/bus contains 2 images, but no class folders; "
     "sort them into {0}/bus/<class>/, or give another split"),
])
def test_a_line_says_what_may_be_meant_otherwise(tmp_path, files, note):
    assert reads(plant(tmp_path, *files), train_split="a")[1] == note.format(tmp_path)


@pytest.mark.parametrize(("more", "fault"), [
    (("test/1.png", "test/2.png"), "{0}/test contains 2 images, but no class folders; sort them into {0}/test/<class>/, "
     "or give another split"),
    (("test/cat/1.png", "test/owl/1.png"),
     "{0}/test/owl is a class that train does not have; rename it as in train, or remove it"),
    (("test/",), "{0}/test contains no image; fill it, or give another split"),
])
def test_a_split_that_cannot_be_used_matters_only_if_it_is_used(tmp_path, more, fault):
    """A folder of unlabelled test images must not stop a training that never looks at it."""
    source = open_(plant(tmp_path, *FLAT, *more), limit=9)
    assert source.num_examples("train", "train_split") == 2
    for split in ("test", "test[:50%]", "train+test"):
        message = message_of(UnusableError, source.num_examples, split, "test_split")
        assert message == f"--test_split={split}: {fault.format(tmp_path)}"


ERRORS = {
    "an empty class": ((*FLAT, "train/owl/"), UnusableError, "{0}/train/owl: is the folder of a class and contains no .png"),
    "a class in another format": ((*FLAT, "train/owl/1.heic", "train/owl/x/2.heic"), UnusableError,
                                  "but 2 .heic; fill it or remove it"),
    "an empty class without splits": (("cat/1.png", "dog/1.png", "owl/x/"), UnusableError, "{0}/owl: is the folder of a class"),
    "an empty class of any split": (("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/owl/"), UnusableError,
                                    "{0}/b/owl: is the folder of a class"),
    "a wrapper": (("photos/train/cat/1.png", "photos/test/cat/1.png"), SettingError, "give folder:{0}/photos,"),
    "a wrapper beside pictures": (("photos/train/cat/1.png", "photos/test/cat/1.png", "docs/1.png"), SettingError,
                                  "give folder:{0}/photos,"),
    "a wrapper called like a split": (("training/train/cat/1.png", "training/test/cat/1.png"), SettingError,
                                      "give folder:{0}/training,"),
    "a wrapper of classes": (("photos/cat/1.png", "photos/dog/1.png"), SettingError, "give folder:{0}/photos,"),
    "a wrapper of folds": (("data/fold1/cat/1.png", "data/fold2/cat/1.png"), SettingError, "give folder:{0}/data,"),
    "only flat splits": (("train/1.png", "test/1.png"), UnusableError,
                         "{0}: contains images in test, train, but no class folders"),
    "splits below classes": (("cat/train/1.png", "cat/test/1.png", "dog/train/1.png"), UnusableError,
                             "{0}/cat: contains test, train, which are splits, where classes are expected"),
    "one class": (("train/cat/1.png", "test/cat/1.png"), UnusableError, "has one class, cat;"),
    "only images": (("1.png", "2.png"), SettingError, "or <class>/, but 2 directly in it; give the folder above the splits"),
    "no image": (("cat/1.txt",), SettingError, "has no .png, .jpg"),
    "a class that is a link to nowhere": (("train/cat/1.png", "train/dog -> nowhere"), UnusableError,
                                          "{0}/train/dog: is a link to nowhere, which does not exist; restore what it points to"),
    "a split that is a link to nowhere": ((*FLAT, "test -> /no/where"), UnusableError, "{0}/test: is a link to /no/where, which"),
    "a part of a class that is a link to nowhere": ((*FLAT, "train/cat/more -> ../x"), UnusableError,
                                                "{0}/train/cat/more: is a link"),
    "a link to itself": ((*FLAT, "train/owl -> owl"), UnusableError,
                         "{0}/train/owl: is a link to owl, which leads back to itself"),
    "names that become equal": (("caf\udce9/1.png", "caf\\xe9/1.png", "dog/1.png"), UnusableError,
                                "has several classes with the name caf\\xe9"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_tree_that_cannot_be_read_is_told_with_the_remedy(tmp_path, name):
    """None of these is a bad example, and none may be skipped."""
    files, error, words = ERRORS[name]
    message = message_of(error, open_, plant(tmp_path, *files), limit=99, train_split="a")
    assert words.format(tmp_path) in message and "max_bad_examples" not in message


def test_a_folder_that_is_a_file(tmp_path):
    plant(tmp_path, "photos.zip")
    message = message_of(SettingError, open_, tmp_path / "photos.zip")
    assert "photos.zip: is a file; give the folder" in message and "unpack" in message


def test_an_image_that_is_a_link_to_nowhere_is_a_bad_example(tmp_path):
    """Such as after moving a folder to which links were made. An image less would not be noticed."""
    plant(tmp_path, *FLAT, "train/cat/gone.png -> ../nowhere/gone.png", "train/dog/deep/round.jpg -> round.jpg")
    message = message_of(UnusableError, open_, tmp_path)
    gone = f"{tmp_path}/train/cat/gone.png"
    assert message.startswith(f"{gone}: is a link to ../nowhere/gone.png, which does not exist; restore or remove it, or give")
    source = open_(tmp_path, limit=2)
    assert source.split_sizes() == {"train": 2} and source.bad.lines() == [
        f"{gone}: is a link to ../nowhere/gone.png, which does not exist",
        f"{tmp_path}/train/dog/deep/round.jpg: is a link to round.jpg, which leads back to itself"]
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    assert f"{tmp_path}/train/cat/pipe.png: is neither a file nor a folder" in open_(tmp_path, limit=3).bad.lines()


def test_links_are_followed(tmp_path):
    """Large data sets lie elsewhere, and a folder of links chooses among their classes, files or parts of classes."""
    plant(tmp_path / "store", "cats/1.png", "cats/more/2.png", "dogs/3.png", "a.png")
    plant(tmp_path / "set", "train/cat -> ../../store/cats", "train/dog/part -> ../../../store/dogs",
          "train/dog/4.png -> ../../../store/a.png", "test -> train", "train/dog/notes.txt -> nowhere")
    counts, notes = reads(tmp_path / "set")
    assert counts == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}
    assert notes == "skipped 1 file in other formats: 1 .txt"


@pytest.mark.parametrize("link", [
    "train/cat/again -> .", "train/cat/up -> ..", "train/cat/top -> ../..", "train/cat/out -> ../../..", "train/loop -> ../train",
    "root -> .", "train/cat/root -> /"])
def test_a_link_to_a_folder_that_contains_it_ends(tmp_path, link):
    """It would read dogs as cats, or never end."""
    counts, notes = reads(plant(tmp_path / "set", *FLAT, link))
    assert counts == {"train": {"cat": 1, "dog": 1}}
    place = tmp_path / "set" / link.split(" ")[0]
    assert notes == f"skipped 1 link to a folder that contains the link, the first is {place}"


def test_a_linked_class_does_not_lead_to_what_is_around_it(tmp_path):
    """The folder above the target of the link contains the other classes too."""
    plant(tmp_path / "store", "cats/1.png", "cats/up -> ..", "dogs/2.png")
    plant(tmp_path / "set", "cat -> ../store/cats", "dog -> ../store/dogs")
    assert reads(tmp_path / "set")[0] == {"train": {"cat": 1, "dog": 1}}


def test_a_folder_that_is_linked_twice_or_in_a_circle_is_read_once_per_class(tmp_path):
    """Otherwise an image would count several times, and ten folders that link each other would take a million steps."""
    plant(tmp_path, *FLAT, "train/cat/a/3.png", "train/cat/b -> a", "train/dog/a -> ../cat/a", "train/owl/0.png")
    plant(tmp_path, *(f"train/owl/{a}/{b} -> ../{b}" for a in range(12) for b in range(12) if a != b))
    plant(tmp_path, *(f"train/owl/{a}/x.png" for a in range(12)))
    assert reads(tmp_path)[0] == {"train": {"cat": 2, "dog": 2, "owl": 13}}


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_is_the_same_class_however_its_accents_are_written(tmp_path, train, test):
    """macOS writes é as two characters, so a test set that was made there had classes of its own."""
    plant(tmp_path, f"train/{train}/1.png", "train/dog/1.png", f"test/{test}/2.png", f"train/{test}/3.png")
    source = open_(tmp_path)
    assert source.class_names == (NFC, "dog") and source.notes == ("test has no image of 1 of 2 classes: dog",)
    assert read(source, tmp_path) == {
        "train": {NFC: sorted([f"train/{train}/1.png", f"train/{test}/3.png"]), "dog": ["train/dog/1.png"]},
        "test": {NFC: [f"test/{test}/2.png"]}}


def test_a_name_with_a_line_feed_stays_in_its_line(tmp_path):
    """A note is printed, and so must not contain what a terminal or a log takes for something else."""
    source = open_(plant(tmp_path, *FLAT, "train/a\nb\x1b[1m\udcff.png"))
    assert source.notes == (f"skipped 1 image beside class folders, the first is {tmp_path}/train/a\\nb\\x1b[1m\\udcff.png",)


@pytest.mark.parametrize("splits", [("train", "test"), ("",), ("fold1", "fold2")])
@pytest.mark.parametrize("start", ["", "./", "a/../"])
def test_order_and_fingerprint_are_those_of_earlier_versions(tmp_path, monkeypatch, splits, start):
    """A run that goes on after an update must see the same examples in the same order, and find its cache."""
    write_folder(tmp_path / "set", splits=splits)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    source = open_(f"{start}set", train_split=splits[0] or "train")
    for split in splits:
        names = [f"{split}/{CLASSES[index % 3]}/{index:03}.png".lstrip("/") for index in range(30)]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        place = "a/../set" if start.startswith("a") else "set"
        assert [example.image.decode() for example in source.examples[split or "train"]] == [f"{place}/{name}" for name in names]
        digest = hashlib.sha256()
        for name in names:
            state = os.stat(f"set/{name}")
            label = CLASSES.index(name.split("/")[-2])
            digest.update(repr((label, f"{place}/{name}".encode(), (state.st_size, state.st_mtime_ns))).encode())
        assert source.fingerprint(split or "train") == {
            "place": str(tmp_path / "set"), "classes": list(CLASSES), "examples": digest.hexdigest()}


def test_classes_are_in_the_order_of_their_names(tmp_path):
    """The order decides the labels, and so which output of a trained network is which class."""
    names = ["b", "a", "B", "10", "9", "ä", "a b", "a-b"]
    source = open_(plant(tmp_path, *(f"train/{name}/1.png" for name in names)))
    assert source.class_names == ("10", "9", "B", "a", "a b", "a-b", "b", "ä")
    assert collections.Counter(example.label for example in source.examples["train"]) == dict.fromkeys(range(8), 1)
    assert read(source, tmp_path) == {"train": {name: [f"train/{name}/1.png"] for name in names}}
