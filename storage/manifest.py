"""The manifest of a folder: size and SHA-256 of each of its files, written last, which makes a checkpoint complete.

    {"format": 2, "step": 40, "world_size": 2, …, "files": {"model.safetensors": {"size": 123, "sha256": "…"}, …}}

File names are relative and use `/`. Nothing outside the folder is ever opened, whatever a manifest says.
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
from storage.atomic import apply_umask, remove, sync_folder, sync_tree, write_json
from storage.safe_read import printable

NAME = "manifest.json"
FORMAT = 2  # of the checkpoint: its files and the keys in them; other formats cannot be resumed from
ALWAYS_HASHED = 2**20  # bytes; smaller files (configuration, state) are hashed even by a shallow verification
MAX_BYTES = 64 * 2**20  # of a manifest
UNREADABLE = "cannot be read"  # part of what `verify` returns when the disk failed: the folder may be intact
OTHER_FORMAT = "this version reads format"  # part of what `verify` returns for checkpoints of other versions
DIGEST = re.compile(r"[0-9a-f]{64}")


def write(folder: Path, *, step: int, world_size: int, names: Iterable[str] | None = None, **facts: Any) -> dict:
    """Hash the files below `folder`, write the manifest into it and return the manifest.

    Args:
        step: Optimizer step that the files belong to.
        world_size: Number of processes that trained.
        names: Relative names of the files to list; None: all files below the folder.
        facts: Further JSON values, stored beside `step` and `world_size`.
    """
    files = {name: entry(folder / name) for name in (listed(folder) if names is None else sorted(names))}
    content = {"format": FORMAT, "step": step, "world_size": world_size, **facts, "files": files}
    write_json(folder / NAME, content)
    return content


def publish_into(staged: Path, folder: Path, **facts: Any) -> None:
    """Move the files of a staging folder into a folder that also holds other files, and write its manifest last.

    Each file is complete at any time. While files are moved there is no manifest, so that a mixture of two models is
    never taken for a complete one.

    Args:
        facts: As in `write`.
    """
    apply_umask(staged)
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
    for name in outdated:  # files of the previous model
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    write(folder, names=names, **facts)


def listed(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder except its manifest, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != NAME)


def entry(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest: its size in bytes and its SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder.

    Raises:
        ValueError: it is missing or damaged, of another format, or names a file outside the folder. The text continues
            a sentence that begins with the folder's name.
    """
    path = folder / NAME
    try:
        if path.is_symlink():
            raise ValueError("it is a symlink")
        content = safe_read.read_json(path, MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f"has no {NAME}") from None
    except (ValueError, IsADirectoryError, safe_read.FileTooLarge) as error:
        raise ValueError(f"has a damaged {NAME}") from error
    except OSError as error:
        raise ValueError(f"{UNREADABLE}: {NAME}: {error.strerror}") from error
    _check(content)
    return content


def _check(content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"has a damaged {NAME}")
    if content.get("format") != FORMAT:
        formats = f"has a {NAME} of format {content.get('format')!r}, {OTHER_FORMAT} {FORMAT}"
        raise ValueError(f"{formats}; resume with the version that wrote it, or start a new run in another folder")
    if any(type(content.get(name)) is not int or content[name] < 0 for name in ("step", "world_size")):
        raise ValueError(f"has a damaged {NAME}: step and world_size must be integers ≥ 0")
    for name, facts in content["files"].items():
        if not _is_inside(name):
            raise ValueError(f"has a {NAME} that names {printable(name)}, which is not a file in its folder")
        size, digest = (facts.get("size"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ValueError(f"has a damaged {NAME}: the entry of {printable(name)}")


def _is_inside(name: str) -> bool:
    """Whether a relative name stays below its folder."""
    parts = PurePosixPath(name).parts
    is_relative = bool(parts) and not name.startswith("/") and ".." not in parts
    return is_relative and name.isprintable() and "\\" not in name and name != NAME


def verify(folder: Path, deep: bool = True) -> str | None:
    """Compare a folder with its manifest.

    Args:
        deep: Hash every file; otherwise hash only files up to ALWAYS_HASHED bytes and compare the size of the others.

    Returns:
        The first difference (`has no optimizer.json`), which continues a sentence that begins with the folder's name;
        None: the folder is complete.
    """
    try:
        content = read(folder)
    except ValueError as error:
        return str(error)
    return difference(folder, content, hash_large=deep)


def difference(folder: Path, content: dict, hash_small: bool = True, hash_large: bool = True) -> str | None:
    """Return the first difference between a folder and a manifest that was read from it; None if there is none.

    Args:
        content: See `read`.
        hash_small, hash_large: Compare the hashes of files up to ALWAYS_HASHED bytes, of larger ones; sizes are always
            compared.
    """
    for name, facts in content["files"].items():
        path, is_hashed = folder / name, hash_large if facts["size"] > ALWAYS_HASHED else hash_small
        try:
            status = os.lstat(path)
            is_linked = path.resolve() != folder.resolve() / name  # also by a symlink in between
            if is_linked or not stat.S_ISREG(status.st_mode):
                return f"has {printable(name)} as a symlink or a folder instead of a file"
            if status.st_size != facts["size"]:
                kind = "truncated" if status.st_size < facts["size"] else "changed"
                return f"has a {kind} {printable(name)} ({status.st_size} of {facts['size']} bytes)"
            if is_hashed and entry(path)["sha256"] != facts["sha256"]:
                return f"has a damaged {printable(name)} (its SHA-256 differs)"
        except (FileNotFoundError, NotADirectoryError):
            return f"has no {printable(name)}"
        except OSError as error:
            return f"has {printable(name)}, which {UNREADABLE}: {error.strerror}"
    return None
