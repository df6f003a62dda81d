"""The folder of a tokenizer of signals as text; importing this needs only the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.signals.config import Config
from storage import atomic, safe_read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER, SETTINGS = "tokenizer", "signals.json"


def settings_of(config: Config) -> dict[str, Any]:
    """What the characters of a tokenizer stand for."""
    return {name: getattr(config, name) for name in ("tokenizer", "levels", "clip")}


def save(tokenizer: Tokenizer, folder: Path, settings: dict[str, object]) -> None:
    """Write `folder/tokenizer/`."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    atomic.write_text(place / SETTINGS, json.dumps(settings))
    atomic.write_text(place / "tokenizer.json", tokenizer.to_str())


def problem_of(folder: str | None, settings: dict[str, object]) -> str | None:
    """What is wrong with a tokenizer's folder for these settings, or None."""
    remedy = "python prepare.py --task_name TASK makes it"
    if folder is None:
        return f"dataset.tokenizer_path is missing, which target: text needs; name a folder, {remedy}"
    if not (Path(folder) / FOLDER / "tokenizer.json").is_file():
        return f"dataset.tokenizer_path: {folder} has no {FOLDER}/tokenizer.json; {remedy}"
    try:
        made = safe_read.read_json(Path(folder) / FOLDER / SETTINGS)
    except (OSError, ValueError):
        return f"dataset.tokenizer_path: {folder}/{FOLDER} has no {SETTINGS} of levels; it is not of signals: {remedy}"
    differing = [f"{name} {made.get(name)}, not {value}" for name, value in settings.items() if made.get(name) != value]
    return f"dataset.tokenizer_path: {folder} is for {', '.join(differing)}" if differing else None
