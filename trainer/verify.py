"""Check a run's checkpoints against their manifests: `python -m trainer.verify OUT [--quick]`.

OUT is a run's folder, whose checkpoints (in it, or in the folder that its run.yaml or checkpoints.json names) and final
model are checked, or a single checkpoint. One line is printed for each. Exit code 0: all are complete, 1: one is not,
2: there is nothing to check.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from storage import manifest, safe_read
from storage.checkpoints import CHECKPOINT, checkpoints, step_of

INCOMPLETE, BAD_INPUT = 1, 2
MAX_BYTES = 2**20  # of a run.yaml or a checkpoints.json


def main(arguments: list[str] | None = None) -> int:
    """Print the state of each checkpoint; return the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        folder = Path(os.path.realpath(os.path.expanduser(flags.folder)))  # of `best-checkpoint`, a symlink
        parts = parts_of(folder)
    except OSError as error:
        print(f"error: {flags.folder} cannot be read: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    errors = {part: verify(part, deep=not flags.quick) for part in parts}
    for part, error in errors.items():
        title = part.name if CHECKPOINT.fullmatch(part.name) else "final model"
        print(f"{title}: {error or summary(part)}")
    if not CHECKPOINT.fullmatch(folder.name):
        complete = [part for part in parts if part != folder and errors[part] is None]
        if complete:
            print(f"a resume takes {complete[-1].name}")
        else:
            print("a resume finds no complete checkpoint here: auto starts a new run, newest refuses")
    return INCOMPLETE if any(errors.values()) else 0


def parts_of(folder: Path) -> list[Path]:
    """Return what is to be checked: the checkpoints of a run's folder, oldest first, then the folder itself if it holds
    a final model; or the folder alone, if it is a checkpoint.

    Raises:
        ValueError: the folder does not exist, or there is nothing to check.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name a run's folder or a checkpoint in it")
    if CHECKPOINT.fullmatch(folder.name):
        return [folder]
    saved = checkpoints(checkpoint_dir(folder))
    final = [folder] if os.path.lexists(folder / manifest.NAME) else []
    if not saved and not final:
        raise ValueError(f"{folder} holds no checkpoint and no {manifest.NAME}: there is nothing to verify")
    return saved + final


def checkpoint_dir(folder: Path) -> Path:
    """Return the folder of a run's checkpoints: the one that run.yaml names (`checkpointing.dirpath`), or the one that
    checkpoints.json names if no checkpoint is there; else the run's own folder."""
    for read_folder in (_configured_folder, _listed_folder):
        try:
            if (place := read_folder(folder)) is not None and checkpoints(place):
                return place
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # a missing or damaged file
            continue
    return folder


def _configured_folder(folder: Path) -> Path | None:
    """The folder in run.yaml, which exists since the run's start."""
    text = safe_read.read(folder / "run.yaml", MAX_BYTES)
    if b"dirpath:" not in text:
        return None
    import yaml

    try:
        # Not the C parser: it crashes on lists that are nested ten thousand levels deep.
        name = yaml.load(text, Loader=yaml.SafeLoader)["checkpointing"]["dirpath"]
    except yaml.YAMLError:
        return None
    return Path(os.path.expanduser(name)) if name else None


def _listed_folder(folder: Path) -> Path:
    """The folder in checkpoints.json, which is written after each save."""
    return folder / safe_read.read_json(folder / "checkpoints.json", MAX_BYTES)["folder"]


def verify(folder: Path, deep: bool) -> str | None:
    """Return what is wrong with a checkpoint or a final model, or None; an empty manifest is an error, too."""
    if (error := manifest.verify(folder, deep=deep)) is not None:
        return error
    content = manifest.read(folder)
    if CHECKPOINT.fullmatch(folder.name) and content["step"] != step_of(folder):
        return f"holds the state of step {content['step']}"
    return None if content["files"] else f"has a {manifest.NAME} that lists no file"


def summary(folder: Path) -> str:
    """Return `complete (12 files, 34.2 MB, step 40)`."""
    content = manifest.read(folder)
    files = content["files"]
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    size = sum(file["size"] for file in files.values()) / 1e6
    return f"complete ({count}, {size:.1f} MB, step {content['step']})"


def _parser() -> argparse.ArgumentParser:
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m trainer.verify", description=about, epilog=" ".join(rest.split()), allow_abbrev=False
    )
    parser.add_argument("folder", metavar="OUT", help="a run's folder, or one checkpoint-N")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, do not hash large files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
