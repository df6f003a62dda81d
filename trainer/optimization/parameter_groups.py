"""Parameter groups: which parameters train at which learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from trainer.settings import ParameterGroup

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
        layer_decay: Factor of every rate for each layer between a parameter and the head, see `depths_from_head`.

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


# ---- how far parameters are from the head, for layer-wise learning-rate decay ----


def depths_from_head(model: nn.Module) -> dict[str, int]:
    """Return parameter name -> number of layers above it, as in BEiT (arXiv:2106.08254) and timm.

    The head and everything else behind the last block has 0, the last block 1, the block before it 2, and the
    embeddings before the first block the number of blocks + 1. Blocks are the elements of the outermost lists of
    modules. An element that is itself a list of blocks of one class is a stage: the blocks in it count, and its
    downsampling belongs to the nearest of them. Lists of a model follow each other in the order of their registration.

    Raises:
        ValueError: the model has no list of blocks.
    """
    walk = _Walk()
    walk.visit(model)
    if not walk.blocks:
        raise ValueError(
            "`layer_decay`: this model has no list of blocks, so its layers have no depth; set layer_decay to 1, and "
            "rates of its parts with param_groups"
        )
    depth_of = {key: walk.blocks + 1 - layer for key, layer in walk.layers.items()}
    depth_of |= dict.fromkeys(walk.behind, 0)
    return {name: depth_of[id(parameter)] for name, parameter in model.named_parameters()}


class _Walk:
    """Number the blocks of a model from 1, in the order of registration.

    Attributes:
        layers: `id` of a parameter -> number of its block; outside of blocks, number of those before it.
        behind: Parameters behind all blocks that have been seen so far.
    """

    def __init__(self) -> None:
        self.blocks, self.layers, self.behind = 0, {}, set()

    def visit(self, module: nn.Module) -> None:
        """Number what is outside of blocks, and the blocks of all lists inside."""
        self._number(module.parameters(recurse=False), self.blocks, is_behind=True)
        for child in module.children():
            if _is_list_of_blocks(child):
                self.behind.clear()
                for element in child:
                    self._visit_element(element)
            else:
                self.visit(child)

    def _visit_element(self, element: nn.Module) -> None:
        inner, first = _blocks_of_stage(element), self.blocks + 1
        if inner is None:
            self.blocks += 1
        for child in element.children():
            if child is not inner:
                self._number(child.parameters(), max(first, self.blocks))
                continue
            for block in inner:
                self.blocks += 1
                self._number(block.parameters(), self.blocks)
        self._number(element.parameters(recurse=False), first)

    def _number(self, parameters: Iterable[nn.Parameter], layer: int, is_behind: bool = False) -> None:
        for parameter in parameters:
            if id(parameter) not in self.layers:  # a tied weight stays where it is first
                self.layers[id(parameter)] = layer
                self.behind |= {id(parameter)} if is_behind and layer else set()


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a list of modules that all consist of others, unlike a convolution with its norm."""
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
    return is_list and all(next(item.children(), None) is not None for item in module)


def _blocks_of_stage(element: nn.Module) -> nn.Module | None:
    """The list of blocks of one class that an element has, or None if it is a block itself."""
    lists = [child for child in element.children() if _is_list_of_blocks(child)]
    return next((blocks for blocks in lists if len({type(block) for block in blocks}) == 1), None)
