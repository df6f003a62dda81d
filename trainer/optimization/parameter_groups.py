"""Parameter groups: which parameters train at which learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from trainer.optimization.layer_depth import depths_from_head
from trainer.sections import ParameterGroup

NORMALIZATIONS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance normalization
)
# Layers of other libraries, recognized by class name: LlamaRMSNorm, FrozenBatchNorm2d, RMSNormGated, ConvNextV2GRN.
NORMALIZATION_CLASS = re.compile(r"(rms|layer|batch|group|instance)norm|norm$|grn$", re.IGNORECASE)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    specs: Sequence[ParameterGroup] = (),
    parts: Mapping[str, str] | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Divide the trainable parameters into optimizer groups, each with `params`, `weight_decay` and `lr`.

    Biases and the weights of normalization layers are never decayed, because shrinking them does not regularize the
    function that the network computes. A parameter belongs to the first spec whose pattern matches its name.

    Args:
        specs: Groups with another learning rate or weight decay.
        parts: Name of a part of the model -> regular expression over parameter names.
        layer_decay: Factor of every rate for each layer between a parameter and the head, see `layer_depth`.

    Raises:
        ValueError: a pattern matches no trainable parameter, or is not a regular expression; `layer_decay` of a model
            whose blocks cannot be told apart.
    """
    depths = {} if layer_decay == 1 else depths_from_head(model)
    undecayed = undecayed_names(model)
    patterns = [_compiled(spec.pattern, parts or {}) for spec in specs]
    groups: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = next((i for i, pattern in enumerate(patterns) if pattern.search(name)), -1)
        rate, decay = learning_rate, weight_decay
        if index >= 0:
            spec = specs[index]
            rate = spec.lr if spec.lr is not None else learning_rate * (1 if spec.lr_factor is None else spec.lr_factor)
            decay = weight_decay if spec.weight_decay is None else spec.weight_decay
        decays, depth = name not in undecayed, depths.get(name, 0)
        new = {"params": [], "weight_decay": decay if decays else 0.0, "lr": rate * layer_decay**depth}
        groups.setdefault((index, depth, decays), new)["params"].append(parameter)
    for index, spec in enumerate(specs):
        if not any(key[0] == index for key in groups):
            known = f"; parts of this model: {', '.join(parts)}" if parts else ""
            raise ValueError(f"param_groups[{index}].pattern `{spec.pattern}` matches no trainable parameter{known}")
    # The rate of the first group is logged: the head's, whose layer has the full learning rate.
    return [groups[key] for key in sorted(groups, key=lambda key: key[1])]


def group_rates(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return parameter name -> learning rate of every trained parameter, from an optimizer's `param_groups`."""
    rates = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in rates}


def undecayed_names(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: biases, and all parameters of normalization layers."""
    names = set()
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, NORMALIZATIONS) or NORMALIZATION_CLASS.search(type(module).__name__)
        for name, _ in module.named_parameters(recurse=False):
            # `bias_ih_l0` belongs to an LSTM, `in_proj_bias` to attention.
            if is_norm or name == "bias" or name.endswith("_bias") or name.startswith("bias_"):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def no_decay_lines(model: nn.Module) -> list[str]:
    """Return lines to print about parameters without weight decay: one with their number, then one for each."""
    undecayed = undecayed_names(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shown = {name: parameter for name, parameter in trained.items() if name in undecayed}
    values = sum(parameter.numel() for parameter in shown.values())
    first = f"no weight decay on {len(shown)} of {len(trained)} trained parameters ({values:,} values)"
    return [first] + [f"  {name} {tuple(parameter.shape)}" for name, parameter in shown.items()]


def _compiled(pattern: str, parts: Mapping[str, str]) -> re.Pattern:
    try:
        return re.compile(parts.get(pattern, pattern))
    except re.error as error:
        raise ValueError(f"param_groups pattern `{pattern}` is not a regular expression: {error}") from None
