"""Small synthetic episodes in ACT's and IL-Studio's layouts, for tests and benchmarks.

Shapes: T steps, D state and action dimensions, H and W of a frame.
"""

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np


def process_parameters(**changes) -> SimpleNamespace:
    """The process parameters a dataset reads, at their plainest."""
    values = {
        "preload_data": False,
        "lazy_preprocess": False,
        "episode_first": False,
        "skip_mirrored_data": False,
        "history_images_length": 1,
        "image_aspect_ratio": "square",
        "is_multimodal": True,
        "use_reasoning": False,
        "use_prev_subtask": False,
        "select_seg_token_mask": False,
        "model_name_or_path": None,
        "trust_remote_code": False,
        "cache_dir": None,
    }
    assert changes.keys() <= values.keys(), changes
    return SimpleNamespace(**(values | changes))


def run_in(folder: Path, seed: int = 0, **process) -> SimpleNamespace:
    """What a dataset's `build` takes as its run, caching under `folder`."""
    return SimpleNamespace(process=process_parameters(**process), seed=seed, cache_dir=Path(folder))


def signal(generator: np.random.Generator, steps: int, dimensions: int) -> np.ndarray:
    """A random walk (T, D) float64: no two steps alike, so a wrong row never passes for the right one."""
    return np.cumsum(generator.normal(size=(steps, dimensions)), axis=0)


def frames(generator: np.random.Generator, steps: int, height: int, width: int) -> np.ndarray:
    """A moving pattern (T, H, W, 3) uint8, smooth as a camera's picture is."""
    rows, columns = np.mgrid[0:height, 0:width]
    colours = generator.uniform(0.5, 1.0, size=3)
    phase = generator.uniform(0, 6)
    waves = [np.sin(rows / 17 + columns / 23 + phase + step / 9)[..., None] * colours for step in range(steps)]
    return (np.stack(waves) * 100 + 128).astype(np.uint8)


def write_act_episode(
    file: Path,
    steps: int = 20,
    dims: tuple[int, int] = (14, 14),
    cameras: dict[str, tuple[int, int]] | None = None,
    seed: int = 0,
    compression: str | None = None,
    attributes: dict | None = None,
    replace: dict[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Write one episode in ACT's layout; returns its arrays by HDF5 path.

    Args:
        dims: of state and action.
        cameras: name -> (height, width) of its frames.
        replace: arrays to write instead, or None to leave one out.
    """
    generator = np.random.default_rng(seed)
    arrays = {
        "observations/qpos": signal(generator, steps, dims[0]),
        "observations/qvel": signal(generator, steps, dims[0]),
        "observations/env_state": signal(generator, steps, 7),
        "action": signal(generator, steps, dims[1]),
    }
    for camera, (height, width) in (cameras or {}).items():
        arrays[f"observations/images/{camera}"] = frames(generator, steps, height, width)
    attributes = {"sim": True} | (attributes or {})
    return write_file(file, arrays | (replace or {}), attributes, compression)


def write_il_studio_episode(
    file: Path,
    steps: int = 20,
    cameras: dict[str, tuple[int, int]] | None = None,
    seed: int = 0,
    instruction: str | None = "pick up the red cube",
    subtasks: list[str] | None = None,
    replace: dict[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Write one episode in IL-Studio's layout: 8 joint and 7 end-effector dimensions, and its texts."""
    generator = np.random.default_rng(seed)
    arrays = {
        "observations/state_joint": signal(generator, steps, 8).astype(np.float32),
        "observations/state_ee": signal(generator, steps, 7).astype(np.float32),
        "action_joint": signal(generator, steps, 8).astype(np.float32),
        "action_ee": signal(generator, steps, 7).astype(np.float32),
        "freq": np.asarray([20.0], np.float32),
        "robot": np.asarray([b"franka"], dtype=object),
    }
    for camera, (height, width) in (cameras or {}).items():
        arrays[f"observations/image/{camera}"] = frames(generator, steps, height, width)
    if instruction is not None:
        arrays["language_instruction"] = np.asarray([instruction.encode()], dtype=object)
    if subtasks is not None:
        arrays["reasoning/subtask"] = np.asarray([text.encode() for text in subtasks], dtype=object)
        arrays["reasoning/target_position"] = generator.normal(size=(steps, 2)).astype(np.float32)
    return write_file(file, arrays | (replace or {}), {}, None)


def write_file(file: Path, arrays: dict, attributes: dict, compression: str | None) -> dict:
    arrays = {key: values for key, values in arrays.items() if values is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as root:
        root.attrs.update(attributes)
        for key, values in arrays.items():
            chunks = (1, *values.shape[1:]) if compression else None
            dtype = h5py.string_dtype() if values.dtype == object else values.dtype
            root.create_dataset(key, data=values, dtype=dtype, compression=compression, chunks=chunks)
    return arrays


def write_act_folder(folder: Path, lengths: tuple = (20, 12, 31), seed: int = 0, **options) -> list[dict]:
    """Several ACT episodes, each from its own seed; returns their arrays in order."""
    return [
        write_act_episode(folder / f"episode_{number}.hdf5", steps, seed=seed + number, **options)
        for number, steps in enumerate(lengths)
    ]


def build_act(tmp_path: Path, process: dict | None = None, **config):
    """The bundle of the episodes in `tmp_path/act` in the files' own units, cached beside them."""
    from data.demonstrations import Config, build

    defaults = {
        "path": str(tmp_path / "act"),
        "chunk_size": 8,
        "normalization": {"state": "identity", "action": "identity"},
    }
    return build(Config(**defaults | config), run_in(tmp_path / "cache", **process or {}))


def everything(dataset) -> dict:
    """All samples of a dataset as one batch."""
    return dataset.__getitems__(list(range(len(dataset))))


def assert_same(one: dict, other: dict) -> None:
    """Two batches are equal, bit for bit."""
    import torch

    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
