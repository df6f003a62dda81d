"""Checks a run's checkpoints against their manifests: `python -m trainer.verify OUT [--quick]`.

OUT is a run's folder, whose checkpoints (in it, or in the folder that its run.yaml or checkpoints.json names) and final
model are checked, or a single checkpoint. One line each; exit code 0: all are whole, 1: one is not, 2: there is nothing
to check.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from storage import manifest, safe_read
from storage.checkpoints import CHECKPOINT, checkpoints, step_of

NOT_WHOLE, NOTHING = 1, 2
LARGEST = 2**20  # bytes of a run.yaml or a checkpoints.json: more is none of ours
UNITS = ("B", "kB", "MB", "GB", "TB")


def main(arguments: list[str] | None = None) -> int:
    """Prints what is found; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        folder = Path(os.path.abspath(os.path.expanduser(flags.folder)))
        found = parts(folder)
    except OSError as error:
        _say(f"error: {flags.folder} cannot be looked at: {error.strerror}", file=sys.stderr)
        return NOTHING
    except ValueError as error:
        _say(f"error: {error}", file=sys.stderr)
        return NOTHING
    faults = {path: fault(path, deep=not flags.quick) for path in found}
    for path, why in faults.items():
        title = path.name if CHECKPOINT.fullmatch(path.name) else "final model"
        _say(f"{title}: {why or whole(path)}")
    if not CHECKPOINT.fullmatch(folder.name):
        _say(_resume_line([path for path in found if path != folder and faults[path] is None]))
    return NOT_WHOLE if any(faults.values()) else 0


def parts(folder: Path) -> list[Path]:
    """What there is to check: the checkpoints, oldest first, and then the run's folder if it holds a final model; or
    the folder alone, if it is a checkpoint.

    Raises:
        ValueError: there is no such folder, or nothing to check in it.
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
    """Where a run keeps its checkpoints: the folder that its run.yaml names (`checkpointing.dirpath`), or, where none
    are there, the one that its checkpoints.json names, as a path from the run's folder; else its own."""
    for said in (_configured, _listed):
        try:
            if (place := said(folder)) is not None and checkpoints(place):
                return place
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return folder


def _configured(folder: Path) -> Path | None:
    """By run.yaml, which is there from a run's start on."""
    text = safe_read.read(folder / "run.yaml", LARGEST)
    if b"dirpath:" not in text:
        return None
    import yaml

    try:
        # Not the C parser: it ends in a crash where lists lie ten thousand deep in one another.
        said = yaml.load(text, Loader=yaml.SafeLoader)["checkpointing"]["dirpath"]
    except yaml.YAMLError:
        return None
    return Path(os.path.expanduser(said)) if said else None


def _listed(folder: Path) -> Path:
    """By checkpoints.json, which is written after each save."""
    return folder / safe_read.read_json(folder / "checkpoints.json", LARGEST)["folder"]


def fault(folder: Path, deep: bool) -> str | None:
    """What is wrong with a checkpoint or a final model, or None. One that promises no file at all is none."""
    if (why := manifest.verify(folder, deep=deep)) is not None:
        return why
    content = manifest.read(folder)
    if CHECKPOINT.fullmatch(folder.name) and content["step"] != step_of(folder):
        return f"holds the state of step {content['step']}"
    return None if content["files"] else f"has a {manifest.NAME} that lists no file"


def whole(folder: Path) -> str:
    """`whole (12 files, 34.2 MB, step 40)`."""
    content = manifest.read(folder)
    files = content["files"]
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return f"whole ({count}, {in_bytes(sum(facts['size'] for facts in files.values()))}, step {content['step']})"


def in_bytes(size: float) -> str:
    """Bytes in the unit that fits, by thousands."""
    for unit in UNITS:
        if size < 999.95 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes everything")


def _resume_line(whole_ones: list[Path]) -> str:
    if not whole_ones:
        return "a resume finds no whole checkpoint here: auto starts afresh, newest refuses"
    return f"a resume takes {whole_ones[-1].name}"


def _say(text: str, file: object = None) -> None:
    """One line, whatever a manifest named a file."""
    print("".join(each if each.isprintable() else "?" for each in text), file=file or sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m trainer.verify", description=about, epilog=" ".join(rest.split()), allow_abbrev=False
    )
    parser.add_argument("folder", metavar="OUT", help="a run's folder, or one checkpoint-N")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, do not read the files' contents")
    return parser


if __name__ == "__main__":
    sys.exit(main())
