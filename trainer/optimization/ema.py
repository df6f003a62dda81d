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
from trainer.distributed import plain_name
from trainer.serialization.state_dict_io import write_tensors

TENSORS, FACTS = "ema.safetensors", "ema.json"


class AveragedWeights:
    """A shadow of the trainable weights: shadow = decay * shadow + (1 - decay) * weight at each update.

    Frozen weights and buffers have no shadow (batch normalization statistics are averages already), tied weights have
    one. The shadow is float32 (float64 for float64 weights), since bfloat16 would round small changes away. Under DDP
    every process computes the same shadow.

    Args:
        model: May be wrapped by DDP or torch.compile; its weights may move to another device later.
        decay: Share of the shadow that an update keeps, in [0, 1).
        warmup: Use min(decay, (1 + n) / (10 + n)) after n earlier updates, so that the initial weights lose influence.
        update_every: Optimizer steps from one update of the shadow to the next; `decay` applies to each update.

    Raises:
        ValueError: no weight of the model is trained.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool, update_every: int):
        self.decay, self.warmup, self.update_every, self.updates = decay, warmup, update_every, 0
        trained = {
            plain_name(name): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.is_floating_point()
        }
        if not trained:
            raise ValueError("EMA has nothing to average: every weight of the model is frozen")
        self.names, self.parameters = list(trained), list(trained.values())
        self.shadow = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in self.parameters
        ]
        self.trained: list[torch.Tensor] | None = None  # the trained weights, inside `swapped`
        self._groups: list[tuple[list[torch.Tensor], list[nn.Parameter]]] | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the shadow after optimizer step number `step`, if an update is due; nothing waits for the device."""
        assert self.trained is None, "the model holds the averaged weights"
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
        """(shadows, parameters) of each device and type: torch's list functions need uniform lists."""
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
        """Inside, the model has the averaged weights, rounded to its own types; afterwards the trained ones, bit for
        bit. Nested calls do nothing. Needs memory for one more copy of the trainable weights."""
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
        """Write in place, so that optimizer, DDP buckets and compiled graphs keep the same storage."""
        torch._foreach_copy_(self.parameters, values)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return `shadow.<name>` and `trained.<name>` of every trainable weight, and settings and counts as JSON."""
        trained = self.parameters if self.trained is None else self.trained
        tensors = {f"shadow.{name}": shadow for name, shadow in zip(self.names, self.shadow, strict=True)}
        tensors |= {f"trained.{name}": weight.detach() for name, weight in zip(self.names, trained, strict=True)}
        facts = {"decay": self.decay, "warmup": self.warmup, "update_every": self.update_every, "updates": self.updates}
        return tensors, facts

    @staticmethod
    def write(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write what `state` returned as ema.safetensors and ema.json."""
        write_tensors(folder / TENSORS, tensors)
        write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")

    def in_place_of(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's state dict with the averaged weights instead of the trained ones, in the model's own types;
        buffers and frozen weights are the same objects."""
        assert self.trained is None, "the model holds the averaged weights already"
        pairs = zip(self.parameters, self.shadow, strict=True)
        averaged = {parameter.data_ptr(): shadow for parameter, shadow in pairs}
        replaced = dict(weights)
        for name, value in weights.items():
            if isinstance(value, torch.Tensor) and value.data_ptr() in averaged:
                replaced[name] = averaged[value.data_ptr()].to(value.dtype)
        return replaced

    @torch.no_grad()
    def load(self, folder: Path | str) -> None:
        """Load the shadow, and the trained weights into the model, from files of `write`.

        The checkpoint's model file holds the averaged weights, from which training must not continue. Settings are not
        loaded.

        Raises:
            ValueError: a file is missing, or its weights are not those trained here; nothing is changed then.
        """
        from safetensors.torch import load_file

        assert self.trained is None, "the model holds the averaged weights"
        folder = Path(folder)
        if not (folder / TENSORS).is_file():
            raise ValueError(
                f"{folder} has no {TENSORS}: it was saved by a run without EMA; turn EMA off to resume from it, or "
                "begin a new run from its weights"
            )
        stored = load_file(folder / TENSORS)
        self._check(stored, folder / TENSORS)
        self._same_kind()
        torch._foreach_copy_(self.shadow, [stored[f"shadow.{name}"] for name in self.names])
        self._fill([stored[f"trained.{name}"] for name in self.names])
        self.updates = json.loads((folder / FACTS).read_text(encoding="utf-8"))["updates"]

    def _check(self, stored: Mapping[str, torch.Tensor], path: Path) -> None:
        """Compare names, shapes and types of stored tensors with this run's."""
        expected, _ = self.state()
        kinds = [
            {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}
            for tensors in (stored, expected)
        ]
        for name in [*expected, *stored]:
            before, now = (kind.get(name, "not trained") for kind in kinds)
            if before != now:
                weight = name.partition(".")[2]
                raise ValueError(f"{path}: the weight `{weight}` is {before}, in this run {now}; use the same model")
