"""What may be deleted from a folder of checkpoints: what this project wrote, and nothing that anyone put beside it or into it."""

import re
import shutil

STEP_FOLDER = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_LEFTOVER = re.compile(rf"\.{STEP_FOLDER.pattern}\.(tmp|old)|\.(best|latest)\.tmp")
_FILE_OF_A_CHECKPOINT = re.compile(r"ckpt\..*|progress\.json|manifest\.json")


def beside(path, suffix):
    """The hidden sibling that a file or folder is written as ("tmp") or moved to ("old"); a user's own copy has another name."""
    return path.with_name(f".{path.name}.{suffix}")


def remove_leftovers(folder):
    """Removes what a killed save or clean-up left behind; a checkpoint that a save was about to replace is put back."""
    for path in [path for path in folder.glob(".*") if _LEFTOVER.fullmatch(path.name)]:
        replaced = path.with_name(path.stem.removeprefix("."))
        if path.suffix == ".old" and not replaced.exists():
            path.rename(replaced)
        else:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def remove_checkpoint(folder):
    """Removes a checkpoint's folder, unless it is a link or holds anything else, such as a user's notes."""
    if not folder.is_dir() or folder.is_symlink():
        return
    if all(_FILE_OF_A_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()):
        gone = beside(folder, "tmp")  # at once: a kill shall not leave half a checkpoint under its name
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
