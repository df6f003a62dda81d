"""The statistics of a LeRobot policy as ours, for training that starts from its weights.

Shapes: N steps, D dimensions of a signal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.statistics import Normalizer, compute
from storage.lerobot_policy import Policy, find_policy, read_policy

KINDS = {"MEAN_STD": "zscore", "MIN_MAX": "min_max", "QUANTILES": "percentiles", "IDENTITY": "identity"}
NEEDED = {"zscore": ("mean", "std"), "min_max": ("min", "max"), "percentiles": ("q01", "q99"), "identity": ()}
MINIMUM_STD = 1e-8  # what lerobot adds to a standard deviation
CONSTANT_SPAN = 0.02  # of a dimension that never changes: lerobot encodes it as -1, so do we


def policy_folder(process: Any) -> Path | None:
    """The folder of the LeRobot policy whose weights a run starts from, or None."""
    if process.model_name_or_path is None or process.is_pretrained or process.load_pretrain:
        return None
    import huggingface_hub

    return find_policy(process.model_name_or_path, process.cache_dir, huggingface_hub)


def backbone_of_policy(process: Any) -> str | None:
    """The vision-language model, with its tokenizer, of the LeRobot policy that a run starts from, or None."""
    folder = policy_folder(process)
    return None if folder is None else read_policy(folder).settings.get("vlm_model_name")


def pretrained_normalizers(
    details: dict, values: dict[str, np.ndarray], image_keys: list[str], config: Any, process: Any
) -> dict[str, Normalizer]:
    """The normalization of the LeRobot policy that a run starts from, by signal; {} if there is none.

    Args:
        details: of the source: its `state_keys`.
        values: states (N, D) and actions (N, D).

    Raises:
        ValueError: `dataset.normalization` has another kind, or the policy has other signals.
    """
    folder = policy_folder(process)
    sizes = values["state"].shape[1], values["action"].shape[1]
    if folder is None or is_of_another_robot(read_policy(folder), *sizes):
        return {}
    refuse_order(folder, "cameras", image_keys, [*read_policy(folder).inputs("VISUAL")])
    found = normalizers_of(folder, details["state_keys"], values["state"], values["action"])
    for signal, own in found.items():
        if own.kind != config.normalization[signal] or config.normalization_mask.get(signal):
            place = f"dataset.normalization.{signal}"
            remedy = f"set {place}: {own.kind}, and no normalization_mask"
            raise ValueError(f"{place}: the policy in {folder} was trained with {own.kind} in all of them; {remedy}")
    return found


def is_of_another_robot(policy: Policy, state_dim: int, action_dim: int) -> bool:
    """Whether a policy that pads states and actions was trained with other sizes of them."""
    own = sum(shape[0] for shape in policy.inputs("STATE", "ENV").values()), policy.action_dim
    return "max_state_dim" in policy.settings and own != (state_dim, action_dim)


def normalization_line(process: Any, state_dim: int, action_dim: int) -> list[str]:
    """Whose normalization a run that starts from a LeRobot policy uses."""
    folder = policy_folder(process)
    if folder is None:
        return []
    policy = read_policy(folder)
    is_theirs = policy.statistics.get("action") and not is_of_another_robot(policy, state_dim, action_dim)
    whose = "as by the policy" if is_theirs else "by this data, not by the policy"
    return [f"states and actions are normalised {whose} in {folder}"]


def normalizers_of(
    folder: Path, state_keys: list[str], states: np.ndarray, actions: np.ndarray
) -> dict[str, Normalizer]:
    """The normalization of states (N, D) and actions (N, D) that a policy was trained with; {} if it has none.

    What its files lack, and its kind of normalization does not need, is computed from the data.

    Raises:
        ValueError: the policy's signals have other dimensions or another order, or are normalised in an unknown way.
    """
    policy = read_policy(folder)
    state_modes = {name: policy.mode(kind) for kind in ("STATE", "ENV") for name in policy.inputs(kind)}
    refuse_order(folder, "state_keys", state_keys, [*state_modes])
    modes = {"state": state_modes, "action": {"action": policy.mode("ACTION")}}
    if not all(policy.statistics.get(name) for signal in modes.values() for name in signal):
        return {}
    values = {"state": states, "action": actions}
    return {signal: normalizer(policy, modes[signal], values[signal]) for signal in modes}


def refuse_order(folder: Path, key: str, own: list[str], theirs: list[str]) -> None:
    """Raise ValueError if the data has the policy's features in another order."""
    if sorted(own) == sorted(theirs) and own != theirs:
        raise ValueError(f"dataset.{key}: the policy in {folder} reads {', '.join(theirs)}; name all in this order")


def normalizer(policy: Policy, modes: dict[str, str], values: np.ndarray) -> Normalizer:
    """The normalization of some features, concatenated; `modes` is how each of them is normalised."""
    names, wrong = list(modes), sorted({*modes.values()} - KINDS.keys())
    kinds = {KINDS[mode] for mode in modes.values() if mode != "IDENTITY"} if not wrong else set()
    if wrong or len(kinds) > 1:
        how = f"normalises {', '.join(names)} by {', '.join(sorted({*modes.values()}))}"
        raise ValueError(f"the policy in {policy.folder} {how}; one of {', '.join(KINDS)} can be used")
    kind, own = kinds.pop() if kinds else "identity", compute(values)
    shared = set.intersection(*(set(policy.statistics[name]) for name in names)) & own.keys()
    theirs = {key: np.concatenate([policy.statistics[name][key] for name in names]) for key in shared}
    if wrong := [key for key in NEEDED[kind] if key not in theirs or not np.isfinite(theirs[key]).all()]:
        raise ValueError(f"the policy in {policy.folder} has no usable {wrong[0]} of {', '.join(names)}")
    shapes = policy.inputs("STATE", "ENV") | {"action": [policy.action_dim]}
    widths = [shapes[name][0] for name in names]
    if sum(widths) != values.shape[1]:
        differ = f"{sum(widths)} numbers in {', '.join(names)}, the data {values.shape[1]}"
        raise ValueError(f"the policy in {policy.folder} has {differ}; choose its state_keys and action_key")
    statistics = {**own, **theirs}
    for low, high in (("min", "max"), ("q01", "q99")):
        constant = statistics[low] == statistics[high]
        statistics[high] = np.where(constant, statistics[low] + CONSTANT_SPAN, statistics[high])
    mask = [mode != "IDENTITY" for mode, width in zip(modes.values(), widths, strict=True) for _ in range(width)]
    return Normalizer.from_statistics(statistics, kind, mask if any(mask) else None, MINIMUM_STD)
