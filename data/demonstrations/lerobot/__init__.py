"""LeRobot data sets (codebase versions v3.0, v2.1 and v2.0); imports only the standard library.

A feature is a signal, a camera or a text of a LeRobot data set, such as `observation.state`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from storage import safe_read

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
NEEDED = ("codebase_version", "fps", "features", "total_episodes", "total_frames", "data_path")


def is_lerobot(folder: Path, layout: str) -> bool:
    """Whether a folder is read as a LeRobot data set under `dataset.layout`."""
    return layout == "lerobot" or layout == "auto" and (folder / INFO).is_file()


def require_pyarrow() -> None:
    """Raise ValueError if the package that reads tables is not installed; `video.library` asks for that of videos."""
    if find_spec("pyarrow") is None:
        raise ValueError("LeRobot data sets need packages: pip install pyarrow av")


def read_info(folder: Path) -> dict[str, Any]:
    """The content of `meta/info.json`.

    Raises:
        ValueError: it is missing or damaged, or of another version.
    """
    file = folder / INFO
    try:
        info = safe_read.read_json(file)
        missing = [name for name in NEEDED if name not in info]
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{file} cannot be read ({reason}); a LeRobot data set has this file: copy it again") from None
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}; copy the data set again")
    if info["codebase_version"] not in VERSIONS:
        known, remedy = ", ".join(VERSIONS), "convert the data set with lerobot's own scripts"
        raise ValueError(f"{file} has codebase_version {info['codebase_version']}; {known} can be read: {remedy}")
    return info


def episode_names(folder: Path) -> list[str]:
    """The names by which `dataset.exclude` leaves out episodes."""
    return [episode_name(index) for index in range(read_info(folder)["total_episodes"])]


def episode_name(index: int) -> str:
    return f"episode_{index}"
