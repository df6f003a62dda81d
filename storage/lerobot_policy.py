"""Folders of LeRobot policies: what their config.json says, and the statistics with which they normalise.

Statistics are in the files of the pre- and postprocessor, in policies of lerobot before 0.4 among the weights.
"""

from __future__ import annotations

import array
import functools
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from storage import safe_read
from storage.hub import hub_is_reachable

WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")  # the second decodes actions
NORMALIZERS = ("normalizer_processor", "unnormalizer_processor")
# Weights of policies before 0.4: normalize_inputs.buffer_observation_state.mean
BUFFERS = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FORMATS = {"F32": "f", "F64": "d"}
MAX_HEADER = 2**26


@dataclass(frozen=True)
class Policy:
    """Attributes:
    settings: the content of config.json.
    statistics: feature -> name (mean, std, min, max …) -> its numbers; empty if the folder has none.
    """

    folder: Path
    settings: dict[str, Any]
    statistics: dict[str, dict[str, list[float]]]

    @property
    def kind(self) -> str:
        return self.settings["type"]

    @property
    def action_dim(self) -> int:
        return self.settings["output_features"]["action"]["shape"][0]

    def inputs(self, *types: str) -> dict[str, list[int]]:
        """Name -> shape of the input features of these types (STATE, ENV, VISUAL), in the policy's order."""
        features = self.settings["input_features"]
        return {name: features[name]["shape"] for kind in types for name in features if features[name]["type"] == kind}

    def mode(self, feature_type: str) -> str:
        """How features of a type are normalised: MEAN_STD, MIN_MAX, QUANTILES, IDENTITY …"""
        return self.settings["normalization_mapping"].get(feature_type, "IDENTITY")


def find_policy(place: str, cache_dir: str | None, hub: ModuleType) -> Path | None:
    """The folder of the LeRobot policy at `place`, a folder or a hub id; None if there is none.

    Args:
        cache_dir: Where files of the hub are kept; None: where its package keeps them.
        hub: The package huggingface_hub.

    Raises:
        ValueError: the hub has such a policy, but its files cannot be downloaded.
    """
    folder = Path(place).expanduser()
    if folder.exists() or not HUB_ID.fullmatch(place):
        return folder if is_policy(folder) else None
    return downloaded_policy(place, cache_dir, hub)


@functools.cache
def downloaded_policy(name: str, cache_dir: str | None, hub: ModuleType) -> Path | None:
    """The folder with a policy's files, downloaded if they are not in the cache; None if `name` is no policy's."""
    options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": not hub_is_reachable()}
    try:
        settings = Path(hub.hf_hub_download(name, "config.json", **options))
    except Exception:  # the package has an error for each cause; the code that reads other kinds of model reports it
        return None
    if not is_policy(settings.parent):
        return None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], **options))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"`model_name_or_path: {name}` cannot be loaded from the hub: {reason}") from None


def is_policy(folder: Path) -> bool:
    """Whether a folder has the config.json of a LeRobot policy."""
    try:
        settings = safe_read.read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and isinstance(settings.get("type"), str) and "input_features" in settings


def read_policy(folder: Path) -> Policy:
    """Read a LeRobot policy's settings and statistics, without its weights.

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    settings = read_mapping(folder / "config.json")
    policy = Policy(folder, settings, {})
    try:
        assert policy.action_dim and all(
            len(shape) in (1, 3) for shape in policy.inputs("STATE", "ENV", "VISUAL").values()
        )
        policy.mode("ACTION")
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a LeRobot policy ({error!r})") from None
    policy.statistics.update(of_processors(folder) or of_buffers(folder, [*settings["input_features"], "action"]))
    return policy


def of_processors(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The statistics in the files that the processors' JSON names; {} without such files."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in PROCESSORS:
        if not (folder / name).is_file():
            continue
        steps = read_mapping(folder / name).get("steps")
        for step in steps if isinstance(steps, list) else []:
            file = step.get("state_file") if step.get("registry_name") in NORMALIZERS else None
            if file is not None:
                if Path(file).name != file:
                    raise ValueError(f"{folder / name} names the file {file!r}; it must lie beside it")
                for key, values in read_numbers(folder / file).items():
                    feature, _, statistic = key.rpartition(".")
                    found.setdefault(feature, {})[statistic] = values
    return found


def of_buffers(folder: Path, features: list[str]) -> dict[str, dict[str, list[float]]]:
    """The statistics among the weights of an older policy; infinite where it was never given any."""
    numbers = read_numbers(folder / WEIGHTS, BUFFERS)
    found: dict[str, dict[str, list[float]]] = {}
    for feature in features:
        for prefix in BUFFERS:
            start = f"{prefix}{feature.replace('.', '_')}."
            own = {name.removeprefix(start): values for name, values in numbers.items() if name.startswith(start)}
            if own:
                found[feature] = own
    return found


def read_numbers(file: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, list[float]]:
    """Name -> all numbers of the tensors of floating point in a safetensors file whose names begin with a prefix.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
            found = {}
            for name, entry in header.items():
                if name.startswith(prefixes) and name != "__metadata__" and entry["dtype"] in FORMATS:
                    start, end = entry["data_offsets"]
                    stream.seek(8 + length + start)
                    values = array.array(FORMATS[entry["dtype"]])
                    values.frombytes(stream.read(end - start))
                    if sys.byteorder == "big":
                        values.byteswap()
                    found[name] = values.tolist()
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())}); copy the policy again") from None


def read_mapping(file: Path) -> dict[str, Any]:
    try:
        content = safe_read.read_json(file)
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
        return content
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{file} cannot be read ({reason}); copy the policy again") from None
