"""Start from a policy that LeRobot trained: its settings as ours, and its weights under our names.

Shapes: D hidden dim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from models.backbone import ImageBackbone
from models.chunking import ChunkPolicy
from storage.lerobot_policy import WEIGHTS, Policy, find_policy, read_policy

# What a network computes itself (positions), and old policies' statistics, which `storage.lerobot_policy` reads.
COMPUTED = ("pos_enc", "pos_grid")
OF_DATA = ("normalize_inputs.", "unnormalize_outputs.", "normalize_targets.")
Pairs = Iterator[tuple[str, str]]


def starts_from_lerobot(process: Any) -> bool:
    """Whether a run starts from LeRobot's weights: a path that is not said to be a checkpoint of ours."""
    return bool(getattr(process, "model_name_or_path", None)) and not (process.is_pretrained or process.load_pretrain)


def policy_folder(process: Any) -> Path | None:
    """The folder of the LeRobot policy at `model_name_or_path`, a folder or a hub id; None if there is none."""
    return find_policy(process.model_name_or_path, process.cache_dir, huggingface_hub)


def opened(process: Any, kind: str) -> Policy:
    """The LeRobot policy at `model_name_or_path`; ValueError if it is none, or of another kind."""
    shown, folder = process.model_name_or_path, policy_folder(process)
    if folder is None:
        raise ValueError(
            f"`model_name_or_path: {shown}` is neither the folder nor the hub id of a LeRobot policy (config.json with "
            f"`type`, {WEIGHTS}); for one of our own checkpoints set `is_pretrained` or `load_pretrain`"
        )
    policy = read_policy(folder)
    if policy.kind != kind:
        raise ValueError(
            f"`model_name_or_path: {shown}` is a LeRobot policy of type {policy.kind}, not {kind}; set model.name"
        )
    return policy


def merged(config: Any, theirs: dict[str, Any], free: Collection[str], policy: Policy) -> Any:
    """The configuration with the policy's values; keys in `free` may also be changed by the user.

    Raises:
        ValueError: a key was changed to another value than the policy's.
    """
    defaults, values = type(config)(), {}
    for name, value in theirs.items():
        own = getattr(config, name)
        if own in (getattr(defaults, name), value):
            values[name] = value
        elif name not in free:
            raise ValueError(
                f"`model.{name}: {own}` contradicts {value}, which the policy in {policy.folder} has; leave it out"
            )
    return replace(config, **values)


def refuse_others(policy: Policy, expected: dict[str, Any]) -> None:
    """Raise ValueError for a setting of the policy that our network has no key for."""
    for name, value in expected.items():
        if policy.settings.get(name, value) != value:
            raise ValueError(
                f"the policy in {policy.folder} has {name}: {policy.settings[name]}; only {value} can be loaded"
            )


def refuse_dims(policy: Policy, config: Any, wanted: dict[str, tuple[int, str]]) -> None:
    """Raise ValueError for data whose sizes are not the policy's.

    Args:
        wanted: our dim -> the policy's number, and what to change.
    """
    for name, (value, remedy) in wanted.items():
        if (getattr(config, name) or 0) != value:
            raise ValueError(
                f"the policy in {policy.folder} has {name} {value}, but the data {getattr(config, name) or 0}; {remedy}"
            )
    if config.num_words:
        raise ValueError(f"the policy in {policy.folder} reads no instruction; set dataset.instruction_words: false")


def load_weights(
    model: ChunkPolicy,
    policy: Policy,
    pairs: Pairs,
    changed: dict[str, Callable[[Tensor], Any]],
    unread: tuple[str, ...] = (),
) -> None:
    """Fill a network with the policy's weights, and its backbones with the statistics of its pixels.

    Args:
        pairs: name of our module or tensor -> the policy's.
        changed: their tensor -> function that returns our tensors by name; all others are equal.
        unread: how the names of their tensors begin that our network does not need.

    Raises:
        ValueError: a weight is missing, left over, or of another shape.
    """
    from safetensors.torch import load_file

    with unset_fake_temporarily():  # an estimate of memory builds networks of tensors without values
        stored = load_file(policy.folder / WEIGHTS)
    weights = {name.replace("._orig_mod", ""): value for name, value in stored.items() if not name.startswith(unread)}
    own, found = model.state_dict(), {}
    for ours, theirs in pairs:
        for name in [name for name in weights if name == theirs or name.startswith(f"{theirs}.")]:
            found[ours + name.removeprefix(theirs)] = weights.pop(name)
    for theirs, change in changed.items():
        if theirs in weights:
            found |= change(weights.pop(theirs))
    left = [name for name in weights if not name.startswith(OF_DATA) and not name.endswith(COMPUTED)]
    wrong = [name for name, value in found.items() if name not in own or own[name].shape != value.shape]
    own_positions = {name for name in own if name.startswith("view_positions") or "pixel_" in name}
    missing = [name for name in own if name not in {*found, *own_positions}]
    if left or wrong or missing:
        raise ValueError(
            f"{policy.folder / WEIGHTS} does not fit this network: {len(left)} weights have no place, {len(wrong)} "
            f"another shape, {len(missing)} missing, first {[*left, *wrong, *missing][0]}"
        )
    scale_pixels(model, policy)
    model.load_state_dict(found, strict=False)
    model.new_weights = set()
    model.notes = [f"{len(found)} weights of the LeRobot policy in {policy.folder}"]


@torch.no_grad()
def scale_pixels(model: nn.Module, policy: Policy) -> None:
    """Give the backbones the shift and scale of pixels with which the policy was trained; without any, ImageNet's.

    Raises:
        ValueError: they are not the same for all cameras, which share one in our backbone.
    """
    affine, mode = {}, policy.mode("VISUAL")
    for camera in policy.inputs("VISUAL"):
        values = {
            name: torch.tensor(v).view(3, 1, 1) for name, v in policy.statistics.get(camera, {}).items() if len(v) == 3
        }
        if mode == "IDENTITY":
            affine[camera] = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        elif mode == "MEAN_STD" and values:
            affine[camera] = values["mean"], values["std"]
        elif mode == "MIN_MAX" and values:
            affine[camera] = (values["min"] + values["max"]) / 2, (values["max"] - values["min"]) / 2
        elif values:
            raise ValueError(f"the policy in {policy.folder} normalises pixels by {mode}, which is not supported")
    shifts = list(affine.values())
    if any(not torch.allclose(a, b) for other in shifts[1:] for a, b in zip(shifts[0], other, strict=True)):
        raise ValueError(
            f"the policy in {policy.folder} normalises the pixels of its cameras differently; only one mean and "
            "standard deviation for all cameras can be loaded"
        )
    for backbone in (module for module in model.modules() if isinstance(module, ImageBackbone) and shifts):
        backbone.pixel_mean.copy_(255 * shifts[0][0])
        backbone.pixel_std.copy_(255 * shifts[0][1])


def resnet_names(ours: str, theirs: str, depths: list[int], top: Callable[[str], str]) -> Pairs:
    """Names of a ResNet of transformers, and of torchvision's; `top` maps torchvision's names of its first level."""
    yield f"{ours}.embedder.embedder.convolution", f"{theirs}.{top('conv1')}"
    yield f"{ours}.embedder.embedder.normalization", f"{theirs}.{top('bn1')}"
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            here = f"{ours}.encoder.stages.{stage}.layers.{layer}"
            there = f"{theirs}.{top(f'layer{stage + 1}')}.{layer}"
            for number in range(3):
                yield f"{here}.layer.{number}.convolution", f"{there}.conv{number + 1}"
                yield f"{here}.layer.{number}.normalization", f"{there}.bn{number + 1}"
            yield f"{here}.shortcut.convolution", f"{there}.downsample.0"
            yield f"{here}.shortcut.normalization", f"{there}.downsample.1"
