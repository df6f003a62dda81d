"""Which parameters train how, and the optimizer that trains them."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import transformers
from torch import nn
from transformers.training_args import OptimizerNames

from trainer.optimization.hybrid_optimizer import PairedOptimizer, matrix_parameters, split_groups
from trainer.serialization.third_party_state import saved_plainly

NORMALIZATIONS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance normalization
)
# Other libraries' layers, known by their class's name: LlamaRMSNorm, FrozenBatchNorm2d, RMSNormGated, ConvNextV2GRN.
NORMALIZATION_CLASS = re.compile(r"(rms|layer|batch|group|instance)norm|norm$|grn$", re.IGNORECASE)

# ---- what cannot train under a Trainer, and why ----

AGAIN = "evaluates the loss several times a step, which a Trainer's step does not do"
CURVATURE = "needs second derivatives of the loss, and the Trainer's backward keeps no graph for them"
IN_BACKWARD = "updates inside the backward pass, where accumulation, clipping and the schedule cannot reach"
WRAPPER = "wraps another optimizer and trains nothing by itself; name the optimizer"
OWN_RATE = "sets the learning rate itself, against any schedule"
EXCHANGES = "exchanges gradients between the processes itself, which the Trainer has already done"

UNFIT = {"LBFGS": AGAIN, "SparseAdam": "takes sparse gradients only, which no model here has"}
UNFIT_NAMES = {"lomo": IN_BACKWARD, "adalomo": IN_BACKWARD}  # and all that end in `_layerwise`
PACKAGE_UNFIT = {
    **dict.fromkeys(("SAM", "GSAM", "LookSAM", "WSAM", "FriendlySAM", "BSAM"), AGAIN),
    **dict.fromkeys(("AdaHessian", "SophiaH"), CURVATURE),
    **dict.fromkeys(("LOMO", "AdaLOMO"), IN_BACKWARD),
    **dict.fromkeys(("Lookahead", "OrthoGrad", "PCGrad", "ScheduleFreeWrapper", "TRAC", "RotoGrad"), WRAPPER),
    **dict.fromkeys(("SafeFP16Optimizer", "DynamicLossScaler"), WRAPPER),
    **dict.fromkeys(("ASGD", "SWATS", "ApolloDQN"), OWN_RATE),
    **dict.fromkeys(("DeMo", "DistributedMuon"), EXCHANGES),
    "AliG": "needs the loss inside its step, which the Trainer does not pass",
    "MuonClip": "clips by the largest attention logits, which the Trainer does not pass to its step",
    **dict.fromkeys(("Gravity", "FTRL"), "divides by the learning rate, which is 0 where a schedule starts or ends"),
}

# ---- what needs its groups or its state made differently ----

PAIRED = ("Muon", "SpectralSphere")  # matrices only: AdamW takes the rest, and the options they do not know
FLAGGED = ("Muon", "AdaMuon", "AdaGO", "NorMuon")  # pytorch-optimizer's own: groups say `use_muon`, AdamW is inside
WITH_OBJECTS = ("AdaShift", "Conda", "SCION", "SCIONLight", "ScalableShampoo")
RATE_FREE = ("A2Grad",)
# Options that the groups decide, and the key that decides them.
FROM_GROUPS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "adamw_lr": "learning_rate",
    "adamw_wd": "weight_decay",
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


def group_rates(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Learning rate of every trained parameter, by name. `groups`: an optimizer's `param_groups`."""
    rates = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in rates}


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay leaves alone: biases, and all of normalization layers by their type."""
    names = set()
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, NORMALIZATIONS) or NORMALIZATION_CLASS.search(type(module).__name__)
        for name, _ in module.named_parameters(recurse=False):
            # `bias_ih_l0` is an LSTM's, `in_proj_bias` an attention's.
            if is_norm or name == "bias" or name.endswith("_bias") or name.startswith("bias_"):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def no_decay_lines(model: nn.Module) -> list[str]:
    """The trainable parameters that weight decay leaves alone, to be printed: one line of counts, one for each name."""
    undecayed = undecayed_names(model)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    spared = {name: each for name, each in trained.items() if name in undecayed}
    values = sum(each.numel() for each in spared.values())
    first = f"no weight decay on {len(spared)} of {len(trained)} trained parameters ({values:,} values)"
    return [first] + [f"  {name} {tuple(each.shape)}" for name, each in spared.items()]


# ---- optimizers by name ----


def build_optimizer(
    model: nn.Module,
    name: str,
    options: Mapping[str, Any],
    *,
    args: transformers.TrainingArguments,
    specs: Sequence[GroupSpec] = (),
    parts: Mapping[str, str] | None = None,
    rates_given: bool = True,
) -> torch.optim.Optimizer:
    """The named optimizer over the model's parameter groups.

    Learning rate and weight decay are the groups'. Beta and epsilon of `args` are given where they differ from
    TrainingArguments' defaults and the class takes them: an optimizer's own tuned defaults are not overwritten by
    Adam's. `Muon` and `SpectralSphere` train matrices and leave the rest to AdamW. An Adafactor has `relative_step`
    off, so that it follows the learning rate, unless the options set it.

    Args:
        name: A TrainingArguments name; a torch.optim class; a class of the package pytorch-optimizer, or the
            lower-case name that it gives it. Looked up in this order.
        options: Further arguments of the constructor.
        specs, parts: See `parameter_groups`.
        rates_given: False: nobody chose a learning rate, so the optimizer's own default is used where it has one.

    Raises:
        ValueError: no such optimizer, one that a Trainer's step cannot serve, an option that it does not take, or a
            weight decay where it has none.
    """
    name, parts = getattr(name, "value", name), parts or {}
    kind, settings, extras = _trainer_optimizer(name, model, args) if is_trainer_name(name) else _by_class(name, args)
    takes = taken_options(kind)
    _check_options(name, options, takes)
    settings = _with_options(settings, _as_declared(kind, options), takes)
    rate = args.learning_rate
    if not rates_given and isinstance(default := _parameters(kind)["lr"].default, float):
        rate = default
    if settings.get("lr", 0) is not None:
        settings["lr"] = rate
    groups = parameter_groups(model, rate, args.weight_decay, specs, parts)
    if "weight_decay" not in takes and any(group["weight_decay"] for group in groups):
        raise ValueError(f"optimizer `{name}` has no weight decay; set weight_decay: 0")
    return _assembled(kind, name, model, _with_extras(groups, extras), settings, parts)


def is_trainer_name(name: Any) -> bool:
    """Whether TrainingArguments knows the optimizer by this name."""
    return getattr(name, "value", name) in {each.value for each in OptimizerNames}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch.optim or of the package pytorch-optimizer with this name; see `build_optimizer`.

    Raises:
        ValueError: no such class (with the nearest; case matters), or one that a Trainer's step cannot serve.
    """
    ours = {each: kind for each, kind in vars(torch.optim).items() if _is_optimizer(kind)}
    package = package_optimizers()
    lower = {each.lower(): kind for each, kind in package.items()}
    kind = ours.get(name) or package.get(name) or lower.get(name)
    if kind is None:
        known = [each.value for each in OptimizerNames] + [*ours, *package]
        folded = {each.lower(): each for each in reversed(known)}
        match = folded.get(name.lower()) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
        remedy = f"did you mean `{match}`?" if match else f"torch.optim has {', '.join(ours)}"
        more = "" if package else " (pip install pytorch-optimizer for 100 more)"
        raise ValueError(
            f"optimizer `{name}` is neither a TrainingArguments name nor a torch.optim class nor one of "
            f"pytorch-optimizer{more}; {remedy}"
        )
    reason = (PACKAGE_UNFIT if _is_package(kind) else UNFIT).get(kind.__name__)
    if reason:
        raise ValueError(f"optimizer `{name}` {reason}")
    return kind


@cache
def package_optimizers() -> dict[str, type]:
    """Class name -> class, of everything that the package pytorch-optimizer offers; empty where it is not installed."""
    try:
        from pytorch_optimizer import optimizer
    except ImportError:
        return {}
    found = {each: getattr(optimizer, each) for each in optimizer.__all__}
    found |= {kind.__name__: kind for kind in optimizer.OPTIMIZERS.values()}
    return {each: kind for each, kind in found.items() if isinstance(kind, type)}


def taken_options(kind: type[torch.optim.Optimizer]) -> tuple[str, ...]:
    """Names of the constructor's options, with those of the AdamW inside where there is one."""
    own = [each for each, parameter in _parameters(kind).items() if parameter.kind != parameter.VAR_KEYWORD]
    has_adamw = kind.__name__ == "Magma" or (kind.__name__ in PAIRED and not _is_flagged(kind))
    return tuple(dict.fromkeys([*own, *(_parameters(torch.optim.AdamW) if has_adamw else ())]))


def ignores_learning_rate(name: str, options: Mapping[str, Any]) -> bool:
    """Whether this optimizer computes its steps without the learning rate, so that no schedule has an effect."""
    if options.get("relative_step"):
        return True
    return not is_trainer_name(name) and optimizer_class(name).__name__ in RATE_FREE


def unused_adam_keys(name: str) -> list[str]:
    """Which of adam_beta1, adam_beta2 and adam_epsilon have no effect on this optimizer."""
    # Values that no default equals: what arrives in the settings is what the optimizer listens to.
    args = SimpleNamespace(learning_rate=1e-3, adam_beta1=0.123, adam_beta2=0.456, adam_epsilon=0.789, optim_args=None)
    if is_trainer_name(name):
        try:
            _, settings, _ = _trainer_optimizer(name, None, args)
        except (ImportError, RuntimeError, ValueError, AttributeError):  # not installed: said when it is built
            return []
    else:
        _, settings, _ = _by_class(name, args)
    heard = str(settings)
    values = {"adam_beta1": "0.123", "adam_beta2": "0.456", "adam_epsilon": "0.789"}
    return [key for key, value in values.items() if value not in heard]


# ---- how a named optimizer is put together ----

_Found = tuple[type[torch.optim.Optimizer], dict[str, Any], list[dict[str, Any]]]


def _trainer_optimizer(name: str, model: nn.Module | None, args: Any) -> _Found:
    """Class, constructor's settings, and groups with settings of their own (GaLore's), of a TrainingArguments name."""
    if name in UNFIT_NAMES or name.endswith("_layerwise"):
        raise ValueError(f"optimizer `{name}` {UNFIT_NAMES.get(name, IN_BACKWARD)}")
    args = copy.copy(args)
    args.optim = OptimizerNames(name)
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
    extras = settings.pop("params", [])
    return kind, settings, extras


def _by_class(name: str, args: Any) -> _Found:
    kind = optimizer_class(name)
    parameters = _parameters(kind) | ({} if kind.__name__ != "Magma" else _parameters(torch.optim.AdamW))
    inside = "adamw_" if _is_flagged(kind) else ""
    if kind.__name__ in PAIRED and not inside:  # their own `eps` is another thing than Adam's
        inside, parameters = "adamw_", {f"adamw_{k}": v for k, v in _parameters(torch.optim.AdamW).items()}
    return kind, _adam_settings(parameters, inside, args), []


def _adam_settings(parameters: Mapping[str, inspect.Parameter], prefix: str, args: Any) -> dict[str, Any]:
    """Betas and epsilon that were set to something else than Adam's defaults, for a constructor that takes them."""
    standard = transformers.TrainingArguments.__dataclass_fields__
    settings: dict[str, Any] = {}
    betas = getattr(parameters.get(f"{prefix}betas"), "default", None)
    keys = ("adam_beta1", "adam_beta2")
    # Three betas are not Adam's: those optimizers keep their own, unless the options give all three.
    if isinstance(betas, tuple) and len(betas) == 2 and any(getattr(args, k) != standard[k].default for k in keys):
        given = (getattr(args, key) for key in keys)
        settings[f"{prefix}betas"] = tuple(
            value if value != standard[key].default else own for value, key, own in zip(given, keys, betas, strict=True)
        )
    epsilon = getattr(parameters.get(f"{prefix}eps"), "default", None)
    if isinstance(epsilon, float) and args.adam_epsilon != standard["adam_epsilon"].default:
        settings[f"{prefix}eps"] = args.adam_epsilon
    return settings


def _check_options(name: str, options: Mapping[str, Any], takes: Sequence[str]) -> None:
    for option in options:
        if option in FROM_GROUPS:
            key = FROM_GROUPS[option]
            raise ValueError(f"optimizer `{name}` has its `{option}` from `{key}`; set that instead of an option")
        if option not in takes:
            match = next(iter(difflib.get_close_matches(option, takes, n=1)), None)
            hint = f"did you mean `{match}`? It" if match else "it"
            raise ValueError(f"optimizer `{name}` takes no `{option}`; {hint} takes {', '.join(takes)}")


def _as_declared(kind: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists only; some constructors insist on the tuple that their default is."""
    defaults = {each: parameter.default for each, parameter in _parameters(kind).items()}
    return {
        each: tuple(value) if isinstance(value, list) and isinstance(defaults.get(each), tuple) else value
        for each, value in options.items()
    }


def _with_options(settings: dict[str, Any], options: dict[str, Any], takes: Sequence[str]) -> dict[str, Any]:
    """The settings with the options over them. An Adafactor has either a learning rate or steps of its own, which its
    paper scales by the parameters (section 8); a rate of None stands for the latter.
    """
    if "relative_step" not in takes:
        return settings | options
    if options.get("relative_step"):
        return {each: value for each, value in settings.items() if each != "scale_parameter"} | options | {"lr": None}
    return settings | {"scale_parameter": False, "relative_step": False} | options


def _with_extras(groups: list[dict[str, Any]], extras: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups, split where a low-rank optimizer has further settings for some of their parameters."""
    for extra in extras:
        further = {each: value for each, value in extra.items() if each != "params"}
        if further:
            inside, outside = split_groups(groups, {id(each) for each in extra["params"]})
            groups = [group | further for group in inside] + outside
    return groups


def _assembled(
    kind: type[torch.optim.Optimizer],
    name: str,
    model: nn.Module,
    groups: list[dict[str, Any]],
    settings: dict[str, Any],
    parts: Mapping[str, str],
) -> torch.optim.Optimizer:
    if kind.__name__ in WITH_OBJECTS:
        kind = saved_plainly(kind)
    if _is_flagged(kind) or kind.__name__ in PAIRED:
        matrices, others = split_groups(groups, matrix_parameters(model, parts, undecayed_names(model)))
        if not matrices:
            raise ValueError(f"optimizer `{name}` trains weight matrices, and this model has none to train; try AdamW")
        if not _is_flagged(kind):
            return _paired(kind, matrices, others, settings)
        # Scaled for the shape, so that one learning rate fits both kinds of group.
        groups = [group | {"use_muon": True} for group in matrices] + [group | {"use_muon": False} for group in others]
        return kind(groups, **{"use_adjusted_lr": True} | settings)
    if kind.__name__ == "AdamMini":
        return _adam_mini(kind, model, groups, settings)
    if kind.__name__ == "LoRARite":
        _check_lora_pairs(model)
    if kind.__name__ == "Ranger21":
        if "num_iterations" not in settings:
            raise ValueError(f"optimizer `{name}` needs the option `num_iterations`, the number of training steps")
        settings = {"disable_lr_scheduler": True} | settings  # its own schedule would multiply into the run's
    return kind(groups, **settings)


def _paired(
    kind: type[torch.optim.Optimizer],
    matrices: list[dict[str, Any]],
    others: list[dict[str, Any]],
    settings: dict[str, Any],
) -> PairedOptimizer:
    own = _parameters(kind)
    # "match_rms_adamw" scales an update as large as AdamW's (Moonlight, arXiv 2502.16982): one learning rate fits both.
    first = {"adjust_lr_fn": "match_rms_adamw"} if "adjust_lr_fn" in own else {}
    first |= {each: value for each, value in settings.items() if each in own}
    prefixed = {each.removeprefix("adamw_"): value for each, value in settings.items() if each.startswith("adamw_")}
    rest = {each: value for each, value in settings.items() if each not in own and not each.startswith("adamw_")}
    second = {"lr": settings["lr"]} | prefixed | rest
    return PairedOptimizer(kind(matrices, **first), torch.optim.AdamW(others, **second) if others else None)


def _adam_mini(
    kind: type[torch.optim.Optimizer], model: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """It makes one group for each parameter from the model; their rates and decays are ours."""
    optimizer = kind(model, **settings)
    of = {id(each): group for group in groups for each in group["params"]}
    for group in optimizer.param_groups:
        ours = of[id(group["params"][0])]
        group |= {"lr": ours["lr"], "weight_decay": ours["weight_decay"]}
    return optimizer


def _check_lora_pairs(model: nn.Module) -> None:
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any(("lora_A", "lora_B")[index % 2] not in name for index, name in enumerate(trained)) or len(trained) % 2:
        raise ValueError("optimizer `LoRARite` trains pairs of LoRA matrices and nothing else; set lora_enable: true")


def _is_flagged(kind: type) -> bool:
    return _is_package(kind) and kind.__name__ in FLAGGED


def _is_package(kind: type) -> bool:
    return any(each.__module__.startswith("pytorch_optimizer.") for each in kind.__mro__)


def _parameters(kind: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters but the first, which is what to train."""
    return dict(list(inspect.signature(kind).parameters.items())[1:])


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def _compiled(pattern: str, parts: Mapping[str, str]) -> re.Pattern:
    try:
        return re.compile(parts.get(pattern, pattern))
    except re.error as error:
        raise ValueError(f"param_groups pattern `{pattern}` is not a regular expression: {error}") from None
