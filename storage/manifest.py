"""A manifest says what a folder holds: size and SHA-256 of every file. Written last, it is a checkpoint's proof.

    {"format": 1, "step": 40, "world_size": 2, …, "files": {"model.safetensors": {"size": 123, "sha256": "…"}, …}}

Names are relative with `/` between their parts. Nothing outside the folder is ever looked at, whatever a manifest says.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from storage import safe_read
from storage.atomic import give_usual_rights, remove, sync_folder, sync_tree, write_json

NAME = "manifest.json"
FORMAT = 1
SMALL = 2**20  # bytes of a file that is always read: configurations and states, on which much is decided
LARGEST = 64 * 2**20  # bytes of a manifest that is read: more is none of ours
UNREADABLE = "cannot be read"  # stands in what `fault` says of a folder that may be whole: a disk did not answer
LONGEST = 100  # characters of a file's name that are shown
DIGEST = re.compile(r"[0-9a-f]{64}")


def write(folder: Path, *, step: int, world_size: int, names: Iterable[str] | None = None, **facts: Any) -> dict:
    """Hashes the files below `folder` (or only those in `names`), writes their manifest into it and returns it.

    Args:
        facts: Further JSON values that stand beside `step` and `world_size`.
    """
    files = {name: entry(folder / name) for name in (listed(folder) if names is None else sorted(names))}
    content = {"format": FORMAT, "step": step, "world_size": world_size, **facts, "files": files}
    write_json(folder / NAME, content)
    return content


def publish_into(staged: Path, folder: Path, **facts: Any) -> None:
    """Moves what was made ready in `staged` into a folder that holds other files too, and writes its manifest last.

    Each file is whole at any time. While they are moved there is no manifest, so that nobody takes a mixture for whole.

    Args:
        facts: As `write` takes them.
    """
    give_usual_rights(staged)
    sync_tree(staged)
    names = listed(staged)
    try:
        outdated = set(read(folder)["files"]) - set(names)
    except ValueError:
        outdated = set()
    (folder / NAME).unlink(missing_ok=True)
    for path in sorted(staged.iterdir()):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            remove(target)
        os.replace(path, target)
    for name in outdated:  # of a former model, which this one replaces
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    write(folder, names=names, **facts)


def listed(folder: Path) -> list[str]:
    """Names of all files below a folder but its manifest."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in found if (name := path.relative_to(folder).as_posix()) != NAME)


def entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def read(folder: Path) -> dict[str, Any]:
    """The manifest in a folder.

    Raises:
        ValueError: there is none, or it is damaged, or it names something outside the folder; the text continues a
            sentence that begins with the folder's name.
    """
    path = folder / NAME
    try:
        if path.is_symlink():
            raise safe_read.NoFile
        content = safe_read.read_json(path, LARGEST)
    except FileNotFoundError:
        raise ValueError(f"has no {NAME}") from None
    except safe_read.NoFile:
        raise ValueError(f"has a {NAME} that is no manifest") from None
    except OSError as error:
        raise ValueError(f"{UNREADABLE}: {NAME}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"has a damaged {NAME}") from error
    _check(content)
    return content


def _check(content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"has a damaged {NAME}")
    if content.get("format") != FORMAT:
        raise ValueError(f"has a {NAME} of format {content.get('format')!r}; this version reads format {FORMAT}")
    if any(type(content.get(name)) is not int or content[name] < 0 for name in ("step", "world_size")):
        raise ValueError(f"has a damaged {NAME}: step and world_size must be whole numbers")
    for name, facts in content["files"].items():
        if not _is_inside(name):
            raise ValueError(f"has a {NAME} that names {shown(name)}, which is no file of its folder")
        size, digest = (facts.get("size"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ValueError(f"has a damaged {NAME}: the entry of {shown(name)}")


def shown(name: str) -> str:
    """A name as a line can show it, whatever somebody else's manifest calls a file."""
    text = "".join(each if each.isprintable() else "?" for each in name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _is_inside(name: str) -> bool:
    """Whether a name is one of a file below the folder."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a pair of code units
        return False
    parts = PurePosixPath(name).parts
    is_relative = bool(parts) and not name.startswith("/") and ".." not in parts
    return is_relative and "\\" not in name and "\0" not in name and name != NAME


def fault(folder: Path, deep: bool = True) -> str | None:
    """What a folder lacks of what its manifest promises (`has no optimizer.json`); None: it is whole.

    Args:
        deep: Read every file and compare its SHA-256; otherwise only the small ones, of the others the size.
    """
    try:
        content = read(folder)
    except ValueError as error:
        return str(error)
    for name, facts in content["files"].items():
        path = folder / name
        try:
            found = os.lstat(path)
            outside = path.resolve() != folder.resolve() / name  # a link on the way
            if outside or not stat.S_ISREG(found.st_mode):
                return f"has {shown(name)} as a link or a folder, not as a file of its own"
            if found.st_size != facts["size"]:
                kind = "truncated" if found.st_size < facts["size"] else "changed"
                return f"has a {kind} {shown(name)} ({found.st_size} of {facts['size']} bytes)"
            if (deep or facts["size"] <= SMALL) and entry(path)["sha256"] != facts["sha256"]:
                return f"has a damaged {shown(name)} (its SHA-256 differs)"
        except (FileNotFoundError, NotADirectoryError):
            return f"has no {shown(name)}"
        except OSError as error:
            return f"has {shown(name)}, which {UNREADABLE}: {error.strerror}"
    return None
