"""Keep folders of prepared data, named by the content they were made from.

A folder is complete or absent: it is built under another name and renamed once. If several processes need the same one,
a lock file lets one of them build it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from storage import atomic
from storage.lock import exclusive

MANIFEST = "manifest.json"
SAMPLED_BLOCKS = 16
BLOCK_BYTES = 16 * 1024


def file_identity(path: Path, name: str) -> dict:
    """Return what identifies a file's content: relative name, size, modification time, digest of sampled bytes.

    The modification time catches every ordinary edit and the sampled bytes a restored time stamp; reading all
    bytes of a large set at every start would cost more than the cache saves.
    """
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in range(SAMPLED_BLOCKS + 1):
            stream.seek(max(0, status.st_size - BLOCK_BYTES) * block // SAMPLED_BLOCKS)
            digest.update(stream.read(BLOCK_BYTES))
    return {"name": name, "size": status.st_size, "modified_ns": status.st_mtime_ns, "digest": digest.hexdigest()}


def key_of(description: dict) -> str:
    """Return the folder name for a JSON description of everything that decides the prepared content."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def open_or_build(root: Path, key: str, build: Callable[[Path], dict]) -> tuple[Path, dict]:
    """Return the complete folder `root/key` and its manifest; `build(staging folder) -> manifest` makes it."""
    folder, lock = root / key, root / f"{key}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        remedy = "set cache_dir to a folder you may write to, or lazy_preprocess: true"
        raise ValueError(f"cannot keep prepared data in {root}: {error.strerror}; {remedy}") from None
    # Without working locks (some network file systems) several processes build, and the last one's rename wins.
    with exclusive(lock, message=f"waiting for another process that prepares {folder}") as is_held:
        manifest = read_manifest(folder)
        if manifest is None:
            for leftover in root.glob(f"{key}.building-*") if is_held else ():
                atomic.discard(leftover)  # of a killed process
            manifest = _build(folder, build)
    return folder, manifest


def _build(folder: Path, build: Callable[[Path], dict]) -> dict:
    staging = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    staging.mkdir()
    try:
        manifest = build(staging)
        manifest = {**manifest, "file_sizes": {entry.name: entry.stat().st_size for entry in staging.iterdir()}}
        (staging / MANIFEST).write_text(json.dumps(manifest))
        atomic.publish(staging, folder)
    finally:
        atomic.discard(staging)
    return read_manifest(folder)


def read_manifest(folder: Path) -> dict | None:
    """Return the manifest of a complete folder; None if there is none or a file lost bytes since."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        is_whole = all((folder / name).stat().st_size == size for name, size in manifest["file_sizes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if is_whole else None


def require_disk(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        needed, free = in_gigabytes(needed), in_gigabytes(free)
        remedy = "set cache_dir to a larger disk, or lazy_preprocess: true to do without a cache"
        raise ValueError(f"{what} needs {needed} on disk but {folder} has {free} free; {remedy}")


def require_memory(needed: int) -> None:
    """Raise ValueError if data does not fit into memory; every process of this machine holds its own copy."""
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = free_memory()
    if needed * copies > free:
        needed, free = in_gigabytes(needed * copies), in_gigabytes(free)
        raise ValueError(f"preload_data needs {needed} of memory but {free} is free; set preload_data: false")


def free_memory() -> int:
    """Return how many bytes this process may still use: of the machine's memory, or within its control group."""
    with open("/proc/meminfo") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max", or another kind of control group: no limit known
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def in_gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
