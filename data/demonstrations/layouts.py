"""Where an episode file keeps what, and reading it with errors that name the file.

Shapes: T steps of one episode, D dimensions of a signal, H and W of a camera's frames as recorded.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data.demonstrations.config import Config, episode_files

IMAGE_GROUPS = {"act": "observations/images", "il_studio": "observations/image"}
MIRRORED_ATTRIBUTES = ("mirrored", "mirror", "is_mirrored")


@dataclass(frozen=True)
class Keys:
    """HDF5 paths of one folder's layout. `images` maps a camera to its frames; empty without images."""

    action: str
    state: tuple[str, ...]
    images: dict[str, str]


@dataclass(frozen=True)
class Episode:
    """One episode file's signals, texts and frame sizes; frames stay in the file."""

    file: Path
    actions: np.ndarray  # (T, D) float64
    states: np.ndarray  # (T, D) float64
    frame_sizes: dict[str, tuple[int, int]]  # camera -> (H, W)
    texts: dict[str, list[str]]  # of "instruction", "reasoning", "subtask" those the file has, T entries each


def sorted_files(folder: Path) -> list[Path]:
    """Episode files below a folder in natural order: episode_2 before episode_10."""

    def natural(file: Path) -> list:
        parts = re.split(r"(\d+)", str(file.relative_to(folder)))
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(episode_files(folder), key=natural)


@contextlib.contextmanager
def reading(file: Path) -> Iterator[h5py.File]:
    """An open episode file; a truncated or corrupt one is a ValueError that names it, where it shows."""
    try:
        with h5py.File(file, "r") as root:
            yield root
    except (OSError, RuntimeError) as error:
        raise unreadable(file, error) from None


def unreadable(file: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"cannot read {file}: {reason}; the file is truncated or corrupt, record it again or remove it")


def is_mirrored(root: h5py.File, name: str) -> bool:
    return "mirror" in name.lower() or any(bool(root.attrs.get(key, False)) for key in MIRRORED_ATTRIBUTES)


def resolve_keys(root: h5py.File, file: Path, config: Config, with_images: bool) -> Keys:
    """The layout of a folder, from its first file and what the configuration fixes."""
    layout = config.layout
    if layout == "auto":
        il_studio = any(key in root for key in ("action_joint", "action_ee", IMAGE_GROUPS["il_studio"]))
        layout = "il_studio" if il_studio else "act"
    if layout == "act" and config.control == "ee" and not (config.action_key and config.state_keys):
        raise ValueError(
            f"dataset.control: ee, but {file} is in ACT's layout, which has joint actions alone; use "
            f"control: joint, or name action_key and state_keys"
        )
    defaults = {
        "act": ("action", "observations/qpos"),
        "il_studio": (f"action_{config.control}", f"observations/state_{config.control}"),
    }
    action, state = defaults[layout]
    images = resolve_images(root, file, config, IMAGE_GROUPS[layout]) if with_images else {}
    return Keys(config.action_key or action, tuple(config.state_keys or [state]), images)


def resolve_images(root: h5py.File, file: Path, config: Config, group: str) -> dict[str, str]:
    available = sorted(root[group]) if group in root else []
    cameras = available if config.cameras is None else config.cameras
    for camera in cameras:
        if camera not in available:
            raise ValueError(f"dataset.cameras: no camera `{camera}` in {file}; {group} has {listed(available)}")
    return {camera: f"{group}/{camera}" for camera in cameras}


def read_episode(root: h5py.File, file: Path, keys: Keys) -> Episode:
    """Signals and texts of an episode, checked; frames only by their shape."""
    actions = read_signal(root, file, keys.action)
    states = np.concatenate([read_signal(root, file, key) for key in keys.state], axis=1)
    lengths = {keys.action: len(actions), **{key: len(root[key]) for key in keys.state}}
    frame_sizes = {}
    for camera, key in keys.images.items():
        frames = dataset_at(root, file, key)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"{file}: {key} holds {frames.dtype} of shape {frames.shape}, expected uint8 frames "
                f"(steps, height, width, 3); convert them, or leave the camera out of dataset.cameras"
            )
        frame_sizes[camera] = frames.shape[1:3]
        lengths[key] = len(frames)
    for key, length in lengths.items():
        if length != len(actions):
            raise ValueError(
                f"{file}: {key} has {length} steps but {keys.action} has {len(actions)}; record the "
                f"episode again or remove the file"
            )
    return Episode(file, actions, states, frame_sizes, read_texts(root, file, len(actions)))


def read_signal(root: h5py.File, file: Path, key: str) -> np.ndarray:
    """(T, D) float64, finite."""
    dataset = dataset_at(root, file, key)
    if dataset.ndim not in (1, 2) or dataset.dtype.kind not in "fiu" or 0 in dataset.shape:
        raise ValueError(
            f"{file}: {key} holds {dataset.dtype} of shape {dataset.shape}, expected numbers (steps, "
            f"dimensions); name another key, or remove the file"
        )
    values = np.asarray(dataset[()], dtype=np.float64).reshape(len(dataset), -1)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        step = int(np.argmin(finite))
        bad = values[step][~np.isfinite(values[step])][0]
        raise ValueError(f"{file}: {key} is {bad} at step {step}; record the episode again or remove the file")
    return values


def dataset_at(root: h5py.File, file: Path, key: str) -> h5py.Dataset:
    found = root.get(key)
    if not isinstance(found, h5py.Dataset):
        existing = []
        root.visititems(lambda name, item: existing.append(name) if isinstance(item, h5py.Dataset) else None)
        raise ValueError(
            f"{file} has no `{key}`; it has {listed(sorted(existing))}: choose dataset.layout, state_keys "
            f"and action_key after these"
        )
    return found


def read_texts(root: h5py.File, file: Path, steps: int) -> dict[str, list[str]]:
    """The instruction, reasoning and subtask of every step, of those the file has.

    Reasoning is every text under `reasoning` (numbers there, such as target positions, are no text), each
    with its name where there are several.
    """
    texts = {}
    instruction = root.get("language_instruction", root.attrs.get("language_instruction"))
    if instruction is not None:
        texts["instruction"] = per_step(instruction, file, "language_instruction", steps)
    group = root.get("reasoning")
    if isinstance(group, h5py.Group):
        entries = {
            name: per_step(item, file, f"reasoning/{name}", steps)
            for name, item in sorted(group.items())
            if isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype)
        }
        if entries:
            several = len(entries) > 1
            texts["reasoning"] = [
                "\n".join(f"{name}: {text}" if several else text for name, text in zip(entries, step, strict=True))
                for step in zip(*entries.values(), strict=True)
            ]
        if "subtask" in entries:
            texts["subtask"] = entries["subtask"]
    elif isinstance(group, h5py.Dataset) and h5py.check_string_dtype(group.dtype):
        texts["reasoning"] = per_step(group, file, "reasoning", steps)
    return texts


def per_step(stored: h5py.Dataset | str | bytes, file: Path, key: str, steps: int) -> list[str]:
    """One text a step, from one text or as many as there are steps."""
    values = np.atleast_1d(stored[()] if isinstance(stored, h5py.Dataset) else np.asarray(stored, dtype=object))
    lines = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if len(lines) not in (1, steps):
        raise ValueError(f"{file}: {key} has {len(lines)} texts for {steps} steps; it needs 1 or {steps}")
    return lines * steps if len(lines) == 1 else lines


def listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
