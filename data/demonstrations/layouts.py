"""The keys of an episode file in ACT's and in IL-Studio's layout, and what is read from one file.

Shapes: T steps of one episode, D dimensions of a signal, H and W of a camera's frames as recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np

from data.demonstrations.config import Config
from data.demonstrations.hdf5 import check_links, dataset_at, names_in, place, read
from data.demonstrations.images import decode

IMAGE_GROUPS = {"act": "observations/images", "il_studio": "observations/image"}
INSTRUCTION_ATTRIBUTES = ("language_instruction", "instruction")
REASONING = ("subtask", "gripper_position", "target_position", "direction")  # of IL-Studio: numbers count as texts
MIRRORED_ATTRIBUTES = ("mirrored", "mirror", "is_mirrored")


@dataclass(frozen=True)
class Keys:
    """HDF5 paths of one folder's layout; `images` is the group of the cameras, None without images."""

    action: str
    state: tuple[str, ...]
    images: str | None


@dataclass(frozen=True)
class Episode:
    """One episode file's signals, texts and frame sizes; frames stay in the file."""

    file: str
    actions: np.ndarray  # (T, D) float64
    states: np.ndarray  # (T, D) float64
    frame_sizes: dict[str, tuple[int, int]]  # camera -> (H, W)
    texts: dict[str, list[str]]  # of "instruction", "reasoning", "subtask" those the file has, T entries each


def resolve_keys(root: h5py.File, config: Config, with_images: bool) -> Keys:
    """The keys of a folder, from its first file and the configuration."""
    layout = config.layout
    if layout == "auto":
        il_studio = any(key in root for key in ("action_joint", "action_ee", IMAGE_GROUPS["il_studio"]))
        layout = "il_studio" if il_studio else "act"
    if layout == "act" and config.control == "ee" and not (config.action_key and config.state_keys):
        remedy = "use control: joint, or name action_key and state_keys"
        raise ValueError(f"dataset.control: ee, but {root.filename} has joint actions alone (ACT); {remedy}")
    action, state = "action", "observations/qpos"
    if layout == "il_studio":
        action, state = f"action_{config.control}", f"observations/state_{config.control}"
    images = IMAGE_GROUPS[layout] if with_images and config.cameras != [] else None
    return Keys(config.action_key or action, tuple(config.state_keys or [state]), images)


def read_episode(root: h5py.File, keys: Keys, config: Config) -> Episode:
    """Check and read the signals and texts of an episode, and the frame sizes of the configured cameras."""
    file = root.filename
    signals = {key: read_signal(root, key) for key in (keys.action, *keys.state)}
    lengths = {key: len(values) for key, values in signals.items()}
    frame_sizes = {}
    if keys.images is not None:
        group = root.get(keys.images)
        available = names_in(group) if isinstance(group, h5py.Group) else []
        for camera in available if config.cameras is None else config.cameras:
            if camera not in available and config.missing_cameras == "mask":
                continue
            if camera not in available:
                missing = f"no camera `{camera}` in {file}; {keys.images} has {', '.join(available) or 'none'}"
                raise ValueError(f"dataset.cameras: {missing}; name these, or set dataset.missing_cameras: mask")
            frames = dataset_at(root, f"{keys.images}/{camera}")
            frame_sizes[camera], lengths[f"{keys.images}/{camera}"] = frame_size(frames), len(frames)
    steps = lengths[keys.action]
    for key, length in lengths.items():
        if length != steps:
            differ = f"{key} has {length} steps but {keys.action} has {steps}"
            raise ValueError(f"{file}: {differ}; record the episode again, or exclude the file")
    states = np.concatenate([signals[key] for key in keys.state], axis=1)
    return Episode(file, signals[keys.action], states, frame_sizes, read_texts(root, steps))


def read_signal(root: h5py.File, key: str) -> np.ndarray:
    """(T, D) float64, finite."""
    dataset = dataset_at(root, key)
    if dataset.ndim not in (1, 2) or dataset.dtype.kind not in "fiu" or 0 in dataset.shape:
        held = f"{place(dataset)} holds {dataset.dtype} of shape {dataset.shape}"
        raise ValueError(f"{held}, expected numbers (steps, dimensions); name another key, or exclude the file")
    values = np.asarray(read(dataset), dtype=np.float64).reshape(len(dataset), -1)
    if (wrong := first_not_finite(values)) is not None:
        step, value = wrong
        raise ValueError(f"{place(dataset)} is {value} at step {step}; record the episode again, or exclude the file")
    return values


def first_not_finite(values: np.ndarray) -> tuple[int, float] | None:
    """The first step at which one of the values (T, D) is not finite, and that value."""
    wrong = np.argwhere(~np.isfinite(values))
    return (int(wrong[0, 0]), values[*wrong[0]]) if len(wrong) else None


def is_compressed(frames: h5py.Dataset) -> bool:
    """Whether each frame is a JPEG or PNG file: rows of bytes padded to one length, or of variable length."""
    variable = h5py.check_vlen_dtype(frames.dtype) == np.uint8 or h5py.check_string_dtype(frames.dtype) is not None
    return frames.ndim == 2 and frames.dtype == np.uint8 or frames.ndim == 1 and (variable or frames.dtype.kind == "V")


def decoded(frames: h5py.Dataset, row: np.ndarray, step: int, fit: Callable = np.asarray) -> np.ndarray:
    """A frame (H, W, 3) of a camera from its row, decoded if it is compressed, as `fit` makes it."""
    try:
        return fit(decode(row) if is_compressed(frames) else row)
    except ValueError as error:
        raise ValueError(f"{place(frames)} step {step}: {error}") from None


def frame_size(frames: h5py.Dataset) -> tuple[int, int]:
    """(H, W) of a camera's first frame."""
    if is_compressed(frames) and len(frames):
        return decoded(frames, read(frames, 0), 0).shape[:2]
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        held = f"{place(frames)} holds {frames.dtype} of shape {frames.shape}"
        remedy = "convert them, or leave the camera out of dataset.cameras"
        raise ValueError(f"{held}, expected uint8 frames (steps, height, width, 3) or JPEG images; {remedy}")
    return frames.shape[1:3]


def read_texts(root: h5py.File, steps: int) -> dict[str, list[str]]:
    """The instruction, reasoning and subtask of every step, of those the file has.

    Reasoning is `substep_reasonings`, else all texts under `reasoning` and the numbers of `REASONING` there, with their
    names if there are several.
    """
    texts = {}
    instruction = text_at(root, "language_instruction", steps)
    for name in INSTRUCTION_ATTRIBUTES:
        if instruction is None and name in root.attrs:
            instruction = per_step(root.attrs[name], root, name, steps)
    if instruction is not None:
        texts["instruction"] = instruction
    entries = reasoning_entries(root, steps)
    whole = text_at(root, "substep_reasonings", steps)
    if whole is not None:
        texts["reasoning"] = whole
    elif entries:
        texts["reasoning"] = [
            "\n".join(f"{name}: {line}" if len(entries) > 1 else line for name, line in zip(entries, step, strict=True))
            for step in zip(*entries.values(), strict=True)
        ]
    if "subtask" in entries:
        texts["subtask"] = entries["subtask"]
    return texts


def reasoning_entries(root: h5py.File, steps: int) -> dict[str, list[str]]:
    """Name -> a text for each step, of what `reasoning` holds; those of `REASONING` first."""
    group = root.get("reasoning")
    if not isinstance(group, h5py.Group):
        lines = text_at(root, "reasoning", steps)
        return {} if lines is None else {"reasoning": lines}
    present = names_in(group)
    entries = {}
    for name in sorted(present, key=lambda name: REASONING.index(name) if name in REASONING else len(REASONING)):
        lines = text_at(root, f"reasoning/{name}", steps)
        if lines is None and name in REASONING:
            lines = numbers_at(root, f"reasoning/{name}", steps)
        if lines is not None:
            entries[name] = lines
    return entries


def numbers_at(root: h5py.File, key: str, steps: int) -> list[str] | None:
    """Numbers as one text per step, with four digits each; None without such a dataset."""
    item = root.get(key)
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or item.ndim == 0:
        return None
    rows = read(dataset_at(root, key)).reshape(len(item), -1).tolist()
    return per_step([", ".join(f"{number:.4g}" for number in row) for row in rows], root, key, steps)


def text_at(root: h5py.File, key: str, steps: int) -> list[str] | None:
    """One text per step from a dataset of strings; None for a group, for numbers, and without such a key."""
    item = root.get(key)
    if item is None:
        check_links(root, key)
    if not isinstance(item, h5py.Dataset):
        return None
    dataset = dataset_at(root, key)
    return per_step(read(dataset), root, key, steps) if h5py.check_string_dtype(dataset.dtype) else None


def per_step(stored: object, root: h5py.File, key: str, steps: int) -> list[str]:
    """One text per step, from one text or as many as there are steps."""
    lines = []
    for value in np.atleast_1d(stored).ravel().tolist():
        try:
            lines.append(value.decode() if isinstance(value, bytes) else value.encode().decode())
        except UnicodeError:
            raise ValueError(f"{root.filename}: {key} is {value!r}, which is not UTF-8; store it as UTF-8") from None
        except AttributeError:
            raise ValueError(f"{root.filename}: {key} is {value!r}, which is not text; store a string") from None
    if len(lines) not in (1, steps):
        raise ValueError(f"{root.filename}: {key} has {len(lines)} texts for {steps} steps; it needs 1 or {steps}")
    return lines * steps if len(lines) == 1 else lines
