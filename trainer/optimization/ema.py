"""An exponential moving average of the trainable weights, for evaluation and export (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storage.atomic import write_text
from trainer.serialization.state_dict_io import write_tensors

TENSORS, FACTS = "ema.safetensors", "ema.json"


class AveragedWeights:
    """A shadow of the trainable weights: shadow = decay * shadow + (1 - decay) * weight after an update.

    Frozen weights have no shadow, tied ones have one, and buffers none: batch normalization statistics are averages
    already and stay the live ones. The shadow is float32 (float64 for float64 weights), since a bfloat16 one would
    round small changes away. Under DDP every process holds the same weights and so makes the same shadow.

    Args:
        model: Also wrapped by DDP or torch.compile; its weights may move to another device later.
        decay: Share of the shadow that an update keeps, at least 0 and below 1.
        warmup: Use min(decay, (1 + n) / (10 + n)) after n earlier updates, so that the random start is soon forgotten.
        update_every: Optimizer steps from one update of the shadow to the next; `decay` applies to each update.

    Raises:
        ValueError: a value is out of range, or nothing in the model is trained.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool, update_every: int):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is not in [0, 1); 0.999 averages over about the last 1000 updates")
        if update_every < 1:
            raise ValueError(f"EMA update interval {update_every} is not a number of steps; 1 updates after every step")
        self.decay, self.warmup, self.update_every, self.updates = decay, warmup, update_every, 0
        trained = {
            _plain_name(name): each
            for name, each in model.named_parameters()
            if each.requires_grad and each.is_floating_point()
        }
        if not trained:
            raise ValueError("EMA has nothing to average: every weight of the model is frozen")
        self.names, self.parameters = list(trained), list(trained.values())
        self.shadow = [parameter.detach().to(_shadow_type(parameter), copy=True) for parameter in self.parameters]
        self.trained: list[torch.Tensor] | None = None  # the weights put aside while `swapped`
        self._groups: list[tuple[list[torch.Tensor], list[nn.Parameter]]] | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follows the weights after optimizer step number `step`; does nothing between two update steps.

        Nothing waits for the device, and the walk over the tensors is torch's.
        """
        assert self.trained is None, "the model holds the averaged weights: nothing to follow"
        if step % self.update_every:
            return
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        for shadow, weights in self._same_kind():
            if shadow[0].dtype == weights[0].dtype:
                torch._foreach_lerp_(shadow, weights, 1 - keep)
            else:  # lerp takes one type only; this rounds in the shadow's type as well
                torch._foreach_mul_(shadow, keep)
                torch._foreach_add_(shadow, weights, alpha=1 - keep)
        self.updates += 1

    def _same_kind(self) -> list[tuple[list[torch.Tensor], list[nn.Parameter]]]:
        """(shadows, parameters) by device and type, as torch's list functions need them to run as one."""
        if self._groups is None or self._groups[0][0][0].device != self.parameters[0].device:
            pairs = zip(self.shadow, self.parameters, strict=True)
            self.shadow = [shadow.to(parameter.device) for shadow, parameter in pairs]
            groups: dict[Any, tuple[list, list]] = {}
            for shadow, parameter in zip(self.shadow, self.parameters, strict=True):
                group = groups.setdefault((parameter.device, parameter.dtype), ([], []))
                group[0].append(shadow)
                group[1].append(parameter)
            self._groups = list(groups.values())
        return self._groups

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the averaged weights inside, rounded to its own types, and the trained ones again after it.

        The trained weights are put aside as they are, so they come back bit for bit, also when an error passes. Inside
        another `swapped` it does nothing. Needs room for one more copy of the trainable weights.
        """
        if self.trained is not None:
            yield
            return
        self._same_kind()
        self.trained = [parameter.detach().clone() for parameter in self.parameters]
        self._fill(self.shadow)
        try:
            yield
        finally:
            trained, self.trained = self.trained, None
            self._fill(trained)

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        """Written in place, so that optimizer, DDP buckets and compiled graphs keep the same storage."""
        torch._foreach_copy_(self.parameters, values)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors `shadow.<name>` and `trained.<name>` of every trainable weight, and the facts as JSON values."""
        trained = self.parameters if self.trained is None else self.trained
        tensors = {f"shadow.{name}": each for name, each in zip(self.names, self.shadow, strict=True)}
        tensors |= {f"trained.{name}": each.detach() for name, each in zip(self.names, trained, strict=True)}
        facts = {"decay": self.decay, "warmup": self.warmup, "update_every": self.update_every, "updates": self.updates}
        return tensors, facts

    def in_place_of(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """A model's state dict with the averaged weights instead of the trained ones, in the model's own types.

        What it holds besides (buffers, frozen weights) stays the same objects.
        """
        assert self.trained is None, "the model holds the averaged weights already"
        averaged = {each.data_ptr(): shadow for each, shadow in zip(self.parameters, self.shadow, strict=True)}
        return {
            name: averaged[each.data_ptr()].to(each.dtype)
            if isinstance(each, torch.Tensor) and each.data_ptr() in averaged
            else each
            for name, each in weights.items()
        }

    @torch.no_grad()
    def load(self, folder: Path | str) -> None:
        """Takes up what `write_averages` wrote of `state`: the shadow, and the trained weights back into the model.

        The checkpoint's model file holds the averaged weights, from which training must not continue. Settings stay
        those given here.

        Raises:
            ValueError: a file is missing, or its weights are not those trained here; nothing is changed then.
        """
        from safetensors.torch import load_file

        assert self.trained is None, "the model holds the averaged weights"
        folder = Path(folder)
        for name in (TENSORS, FACTS):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} has no {name}: it was saved by a run without EMA; turn EMA off to resume from it, "
                    "or begin a new run from its weights"
                )
        stored = load_file(folder / TENSORS)
        self._check(stored, folder / TENSORS)
        self._same_kind()
        torch._foreach_copy_(self.shadow, [stored[f"shadow.{name}"] for name in self.names])
        self._fill([stored[f"trained.{name}"] for name in self.names])
        self.updates = json.loads((folder / FACTS).read_text(encoding="utf-8"))["updates"]

    def _check(self, stored: Mapping[str, torch.Tensor], path: Path) -> None:
        wanted, _ = self.state()
        for name in [*wanted, *stored]:
            kind, _, weight = name.partition(".")
            if name not in stored:
                raise ValueError(f"{path} has no {kind} weight `{weight}`, which this run trains; freeze what it froze")
            if name not in wanted:
                raise ValueError(f"{path} holds weight `{weight}`, which this run does not train; unfreeze it")
            if stored[name].shape != wanted[name].shape or stored[name].dtype != wanted[name].dtype:
                was, now = (f"{tuple(each.shape)} {each.dtype}" for each in (stored[name], wanted[name]))
                raise ValueError(f"{path}: {kind} weight `{weight}` is {was}, here it is {now}; use the same model")


def write_averages(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Writes what `AveragedWeights.state` returned as ema.safetensors and ema.json."""
    write_tensors(folder / TENSORS, tensors)
    write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")


def _plain_name(name: str) -> str:
    """A parameter's name in the model itself, not in DDP's or torch.compile's wrapper, wherever that one sits."""
    return name.removeprefix("module.").replace("_orig_mod.", "").removeprefix("module.")


def _shadow_type(parameter: torch.Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
