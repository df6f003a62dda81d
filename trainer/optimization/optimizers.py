"""Build an optimizer by name over a model's parameter groups; Muon for weight matrices is paired with AdamW."""

from __future__ import annotations

import copy
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.training_args import OptimizerNames

from trainer.distributed import size_text
from trainer.optimization.parameter_groups import parameter_groups, undecayed_names
from trainer.serialization import state_dict_io
from trainer.settings import ParameterGroup

# Optimizers that cannot train under a Trainer, and why.
IN_BACKWARD = "updates inside the backward pass, where accumulation, clipping and the schedule cannot act"
UNSUPPORTED = {
    "LBFGS": "evaluates the loss several times in a step, which a Trainer's step does not do",
    "SparseAdam": "needs sparse gradients, which no model here has",
    "lomo": IN_BACKWARD,
    "adalomo": IN_BACKWARD,
}  # and all names that end in `_layerwise`
# Classes of pytorch-optimizer that need more than gradients in their step, or more than tensors in their state.
NOT_PLAIN = frozenset({
    "SAM", "GSAM", "LookSAM", "WSAM", "FriendlySAM", "BSAM", "AdaHessian", "SophiaH", "LOMO", "AdaLOMO", "Lookahead",
    "OrthoGrad", "PCGrad", "ScheduleFreeWrapper", "TRAC", "RotoGrad", "SafeFP16Optimizer", "DynamicLossScaler", "ASGD",
    "SWATS", "ApolloDQN", "DeMo", "DistributedMuon", "AliG", "MuonClip", "Gravity", "FTRL", "AdaShift", "Conda",
    "SCION", "SCIONLight", "ScalableShampoo", "AdamMini", "LoRARite", "Ranger21", "Magma", "Muon", "AdaMuon", "AdaGO",
    "NorMuon", "SpectralSphere",
})  # fmt: skip
# Options that the groups decide, and the key that decides them.
FROM_GROUPS = {"lr": "learning_rate", "weight_decay": "weight_decay"}


def build_optimizer(
    model: nn.Module,
    name: str,
    options: Mapping[str, Any],
    *,
    args: transformers.TrainingArguments,
    specs: Sequence[ParameterGroup] = (),
    parts: Mapping[str, str] | None = None,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Build the named optimizer over the model's parameter groups.

    Learning rate and weight decay are those of the groups. Betas and epsilon of `args` are passed if they differ from
    TrainingArguments' defaults and the class takes them, so that an optimizer's own tuned defaults are not replaced by
    Adam's. `Muon` trains weight matrices and leaves the other parameters to AdamW. An Adafactor follows the learning
    rate (`relative_step` is off) unless the options set it.

    Args:
        name: Looked up in this order: a TrainingArguments name; a torch.optim class; a class of the package
            pytorch-optimizer, or its lower-case name there.
        options: Further arguments of the constructor.
        specs, parts, layer_decay: See `parameter_groups`.

    Raises:
        ValueError: no such optimizer, one that a Trainer's step cannot serve, an option that it does not take, or a
            weight decay that it does not have.
    """
    name, parts = getattr(name, "value", name), parts or {}
    if name in {value.value for value in OptimizerNames}:
        kind, settings, extras = _of_transformers(name, model, args)
    else:
        kind, extras = optimizer_class(name), []
        settings = _adam_settings(kind, args)
    takes = _parameters(kind)
    for option in FROM_GROUPS.keys() & options.keys():
        raise ValueError(f"optimizer `{name}`: `{option}` is set by the key `{FROM_GROUPS[option]}`; use that")
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if takes_any and (unknown := [option for option in options if option not in takes]):  # it would be swallowed
        raise ValueError(f"optimizer `{name}` takes no `{unknown[0]}`; it takes {', '.join(takes)}")
    settings = _with_options(settings, _as_declared(kind, options), takes)
    if settings.get("lr", 0) is not None:
        settings["lr"] = args.learning_rate
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, specs, parts, layer_decay)
    if "weight_decay" not in takes and any(group["weight_decay"] for group in groups):
        raise ValueError(f"optimizer `{name}` has no weight decay; set weight_decay: 0")
    groups = _with_extras(groups, extras)
    if kind is torch.optim.Muon:
        return _paired_with_adamw(kind, model, groups, settings, parts)
    return kind(groups, **settings)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of torch.optim or of the package pytorch-optimizer with this name; see `build_optimizer`.

    Raises:
        ValueError: no such class, or one that cannot train under a Trainer.
    """
    package = package_optimizers()
    lower = {key.lower(): kind for key, kind in package.items()}
    own = getattr(torch.optim, name, None)
    is_own = isinstance(own, type) and issubclass(own, torch.optim.Optimizer) and own is not torch.optim.Optimizer
    kind = own if is_own else package.get(name) or lower.get(name)
    if kind is None:
        remedy = "" if package else "; pip install pytorch-optimizer for 100 more"
        raise ValueError(f"optimizer `{name}` is neither a TrainingArguments name nor a class of torch.optim{remedy}")
    if kind.__module__.startswith("pytorch_optimizer.") and kind.__name__ in NOT_PLAIN:
        raise ValueError(
            f"optimizer `{name}` of pytorch-optimizer needs more than gradients in its step or more than tensors in "
            "its state; choose another, such as torch's Muon or AdamW"
        )
    if kind.__name__ in UNSUPPORTED:
        raise ValueError(f"optimizer `{name}` {UNSUPPORTED[kind.__name__]}; choose another")
    return kind


@cache
def package_optimizers() -> dict[str, type]:
    """Class name -> class, of everything in the package pytorch-optimizer; empty if it is not installed."""
    try:
        from pytorch_optimizer import optimizer
    except ImportError:
        return {}
    kinds = {name: getattr(optimizer, name) for name in optimizer.__all__}
    kinds |= {kind.__name__: kind for kind in optimizer.OPTIMIZERS.values()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type)}


def _of_transformers(
    name: str, model: nn.Module, args: Any
) -> tuple[type[torch.optim.Optimizer], dict[str, Any], list[dict[str, Any]]]:
    """Class, constructor arguments, and groups with further settings (GaLore's), of a TrainingArguments name."""
    if name in UNSUPPORTED or name.endswith("_layerwise"):
        raise ValueError(f"optimizer `{name}` {UNSUPPORTED.get(name, IN_BACKWARD)}; choose another")
    args = copy.copy(args)
    args.optim = OptimizerNames(name)
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind, settings, settings.pop("params", [])


def _adam_settings(kind: type[torch.optim.Optimizer], args: Any) -> dict[str, Any]:
    """Betas and epsilon that differ from Adam's defaults, for a constructor that takes them."""
    parameters, prefix = _parameters(kind), ""
    if kind is torch.optim.Muon:  # its own `eps` is not Adam's: they are for the AdamW beside it
        parameters, prefix = _parameters(torch.optim.AdamW), "adamw_"
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    standard = transformers.TrainingArguments.__dataclass_fields__
    changed = {
        key: getattr(args, key)
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon")
        if getattr(args, key) != standard[key].default
    }
    settings: dict[str, Any] = {}
    betas = defaults.get("betas")
    # Three betas are not Adam's: those optimizers keep their own, unless the options give all three.
    if isinstance(betas, tuple) and len(betas) == 2 and changed.keys() & {"adam_beta1", "adam_beta2"}:
        settings[f"{prefix}betas"] = (changed.get("adam_beta1", betas[0]), changed.get("adam_beta2", betas[1]))
    if isinstance(defaults.get("eps"), float) and "adam_epsilon" in changed:
        settings[f"{prefix}eps"] = changed["adam_epsilon"]
    return settings


def _as_declared(kind: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert YAML's lists to tuples where the constructor's default is a tuple: some constructors insist on it."""
    defaults = {name: parameter.default for name, parameter in _parameters(kind).items()}
    return {
        name: tuple(value) if isinstance(value, list) and isinstance(defaults.get(name), tuple) else value
        for name, value in options.items()
    }


def _with_options(settings: dict[str, Any], options: dict[str, Any], takes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge options into the settings. An Adafactor has either a learning rate or relative steps, which its paper
    scales by the parameters (arXiv:1804.04235, section 8); a learning rate of None stands for the latter."""
    if "relative_step" not in takes:
        return settings | options
    if options.get("relative_step"):
        return {name: value for name, value in settings.items() if name != "scale_parameter"} | options | {"lr": None}
    return settings | {"scale_parameter": False, "relative_step": False} | options


def _with_extras(groups: list[dict[str, Any]], extras: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Split the groups where a low-rank optimizer has further settings for some of their parameters."""
    for extra in extras:
        further = {name: value for name, value in extra.items() if name != "params"}
        if further:
            inside, outside = split_groups(groups, {id(parameter) for parameter in extra["params"]})
            groups = [group | further for group in inside] + outside
    return groups


def _paired_with_adamw(
    kind: type[torch.optim.Optimizer],
    model: nn.Module,
    groups: list[dict[str, Any]],
    settings: dict[str, Any],
    parts: Mapping[str, str],
) -> PairedOptimizer:
    """Muon over the weight matrices and AdamW over the rest; options that Muon does not take belong to AdamW."""
    matrices, others = split_groups(groups, matrix_parameters(model, parts, undecayed_names(model)))
    if not matrices:
        raise ValueError("optimizer `Muon` trains weight matrices, and this model has none to train; try AdamW")
    own = _parameters(kind)
    # "match_rms_adamw" makes an update as large as AdamW's (Moonlight, arXiv:2502.16982): one learning rate fits both.
    first = {"adjust_lr_fn": "match_rms_adamw"} if "adjust_lr_fn" in own else {}
    first |= {name: value for name, value in settings.items() if name in own}
    second = {"lr": settings["lr"]}
    second |= {name.removeprefix("adamw_"): value for name, value in settings.items() if name not in own}
    return PairedOptimizer(kind(matrices, **first), torch.optim.AdamW(others, **second) if others else None)


def _parameters(kind: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters without the first, the parameters to train."""
    return dict(list(inspect.signature(kind).parameters.items())[1:])


HEAD_PARTS = ("head", "lm_head")


class PairedOptimizer(torch.optim.Optimizer):
    """Two optimizers over disjoint groups; `param_groups` contains their own dicts, so a schedule reaches both.

    Args:
        matrices: Trains the weight matrices; its groups come first.
        others: Trains the rest; None: there is no rest.
    """

    def __init__(self, matrices: torch.optim.Optimizer, others: torch.optim.Optimizer | None):
        self.members = (matrices,) if others is None else (matrices, others)
        # Adding a group keeps the dict itself: what a schedule writes into ours is what the members read.
        groups = [group for member in self.members for group in member.param_groups]
        super().__init__(groups, {"lr": matrices.defaults["lr"]})
        self._join()

    def _join(self) -> None:
        """Share one state dict and one list of groups; the parameters are disjoint."""
        self.state = defaultdict(dict)
        for member in self.members:
            self.state.update(member.state)
        for member in self.members:
            member.state = self.state
        self.param_groups = [group for member in self.members for group in member.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups, state = state_dict["param_groups"], state_dict["state"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the saved optimizer has {len(groups)} parameter groups, this one {len(self.param_groups)}"
            )
        first = 0
        for member in self.members:
            own = groups[first : first + len(member.param_groups)]
            first += len(own)
            saved = {index: state[index] for group in own for index in group["params"] if index in state}
            member.load_state_dict({"state": saved, "param_groups": own})
        self._join()


def matrix_parameters(model: nn.Module, parts: Mapping[str, str], undecayed: Iterable[str]) -> set[int]:
    """Return ids of the trainable weights that are matrices between layers: 2-D, in no embedding, head or norm."""
    heads = [re.compile(parts[name]) for name in HEAD_PARTS if name in parts]
    excluded = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    excluded += [] if output is None else [output]
    excluded_ids = {id(parameter) for module in excluded for parameter in module.parameters()}
    names = set(undecayed)
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in excluded_ids
        if name not in names and not any(head.search(name) for head in heads)
    }


def split_groups(
    groups: Iterable[dict[str, Any]], chosen: set[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups over the chosen parameters and those over the rest, with their settings; no empty ones."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for side, is_chosen in zip(sides, (True, False), strict=True):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in chosen) == is_chosen]
            if parameters:
                side.append(group | {"params": parameters})
    return sides


# ---- changed hyperparameters on resume, and the state of an earlier run (`load_optimizer`) ----


@dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer as a run describes it; see `optimizers.build_optimizer`.

    Attributes:
        arguments: Fields of TrainingArguments, in place of the run's own.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    specs: Sequence[Any] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layer_decay: float = 1.0

    def build(self, model: nn.Module, args: Any, parts: Mapping[str, str]) -> torch.optim.Optimizer:
        args = copy.copy(args)
        for name, value in self.arguments.items():
            setattr(args, name, value)
        groups = {"specs": self.specs, "parts": parts, "layer_decay": self.layer_decay}
        return build_optimizer(model, self.name, self.options, args=args, **groups)


def changed_options(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each group of an optimizer the options that have changed: `lr`, `weight_decay`, `betas` … -> the new value.

    Args:
        before, now: The groups of two optimizers as they were built, over the same model: what an optimizer itself
            writes into its groups later (a step, an estimate) is not compared.

    Raises:
        ValueError: the groups hold other parameters, so that the stored state would not fit.
    """
    members = [[[id(parameter) for parameter in group["params"]] for group in groups] for groups in (before, now)]
    if members[0] != members[1]:
        raise ValueError("the optimizer's groups hold other parameters than those of the checkpoint; set them back")
    return [
        {key: value for key, value in group.items() if key != "params" and not _same(value, earlier.get(key))}
        for group, earlier in zip(now, before, strict=True)
    ]


def apply_changes(optimizer: torch.optim.Optimizer, schedule: Any, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write changed options into the groups, and changed rates into the schedule, which the groups follow."""
    for group, changed in zip(optimizer.param_groups, changes, strict=True):
        group.update({key: value for key, value in changed.items() if key != "lr"})
    bases = [changed.get("lr", base) for base, changed in zip(schedule.base_lrs, changes, strict=True)]
    schedule.rebase([float(base) for base in bases])


def _same(value: Any, earlier: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(earlier, torch.Tensor):
        return torch.equal(value, earlier)
    return type(value) is type(earlier) and value == earlier


def load_earlier_state(optimizer: Any, folder: Path) -> None:
    """Load the optimizer's state (moments, step counts) from an earlier run's checkpoint, but not its learning rates.

    Raises:
        ValueError: the state is missing or corrupted, or belongs to another optimizer or model.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state_dict_io.read(folder, "optimizer"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`load_optimizer`: {folder} cannot be used: {' '.join(str(error).split())}") from error
    for group, own in zip(optimizer.param_groups, options, strict=True):
        for name in group.keys() - own.keys() - {"params"}:
            del group[name]
        group.update(own)
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"`load_optimizer`: {folder} is of another model: its `{name}` is {size_text(value.shape)} for "
                        f"a weight of {size_text(parameter.shape)}"
                    )
