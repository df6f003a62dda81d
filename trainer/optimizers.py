"""Which parameters train how, and the optimizer that trains them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

NORMALIZATIONS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance normalization
)


UNFIT = {
    "LBFGS": "evaluates the loss several times a step, which a Trainer's step does not do",
    "SparseAdam": "takes sparse gradients only, which no model here has",
}


class GroupSpec(Protocol):
    """One entry of `param_groups`."""

    pattern: str
    lr: float | None
    lr_factor: float | None
    weight_decay: float | None


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    specs: Sequence[GroupSpec] = (),
    parts: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters as optimizer groups, each with `params`, `weight_decay` and `lr`.

    Biases and the weights of normalization layers are never decayed: shrinking them only fights the data's scale.
    A parameter belongs to the first spec whose pattern matches its name.

    Args:
        specs: Groups with a rate or decay of their own.
        parts: Names the model gives to its parts, as regular expressions over parameter names.

    Raises:
        ValueError: a pattern matches no trainable parameter, or is not a regular expression.
    """
    undecayed = undecayed_names(model)
    patterns = [_compiled(spec.pattern, parts or {}) for spec in specs]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        index = next((i for i, pattern in enumerate(patterns) if pattern.search(name)), -1)
        rate, decay = learning_rate, weight_decay
        if index >= 0:
            spec = specs[index]
            rate = spec.lr if spec.lr is not None else learning_rate * (1 if spec.lr_factor is None else spec.lr_factor)
            decay = weight_decay if spec.weight_decay is None else spec.weight_decay
        decays = name not in undecayed
        new = {"params": [], "weight_decay": decay if decays else 0.0, "lr": rate}
        groups.setdefault((index, decays), new)["params"].append(parameter)
    for index, spec in enumerate(specs):
        if not any(key[0] == index for key in groups):
            known = f"; parts of this model: {', '.join(parts)}" if parts else ""
            raise ValueError(f"param_groups[{index}].pattern `{spec.pattern}` matches no trainable parameter{known}")
    return list(groups.values())


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay leaves alone: biases, and all of normalization layers by their type."""
    names = set()
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, NORMALIZATIONS) or type(module).__name__.lower().endswith("norm")
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or name == "bias" or name.endswith("_bias"):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def torch_optimizer(name: str, options: Mapping[str, Any]) -> type[torch.optim.Optimizer]:
    """The class `torch.optim.<name>`, with `options` checked against its constructor.

    Raises:
        ValueError: no such class (with the nearest, case matters), or an option that it does not take.
    """
    import difflib

    known = [each for each, kind in vars(torch.optim).items() if _is_optimizer(kind)]
    kind = getattr(torch.optim, name, None)
    if not _is_optimizer(kind):
        folded = {each.lower(): each for each in known}
        match = folded.get(name.lower()) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
        remedy = f"did you mean `{match}`?" if match else f"torch.optim has {', '.join(known)}"
        raise ValueError(f"optimizer `{name}` is neither a TrainingArguments name nor a torch.optim class; {remedy}")
    if name in UNFIT:
        raise ValueError(f"optimizer `{name}` {UNFIT[name]}")
    takes = list(inspect.signature(kind).parameters)[1:]
    unknown = [option for option in options if option not in takes]
    if unknown:
        raise ValueError(f"optimizer `{name}` takes no `{unknown[0]}`; it takes {', '.join(takes)}")
    return kind


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def _compiled(pattern: str, parts: Mapping[str, str]) -> re.Pattern:
    try:
        return re.compile(parts.get(pattern, pattern))
    except re.error as error:
        raise ValueError(f"param_groups pattern `{pattern}` is not a regular expression: {error}") from None
