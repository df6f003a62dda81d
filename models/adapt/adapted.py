"""An adapted model: what the trainer trains, and how it is saved, resumed and described."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import report, saved


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own, as an entry of `param_groups`."""

    pattern: str
    lr: float | None = None
    lr_factor: float | None = None
    weight_decay: float | None = None


@dataclass
class Record:
    """How a model came to be: what is needed to build it again, and what was said about it.

    Attributes:
        module: dotted name of the component module.
        architecture: name of the model's class.
        place: where its first weights load again from; None: nowhere.
        process: process parameters.
        attention: what it computes attention with.
        lines: what was chosen, and what was not honoured.
        quantization: settings and `modules`, the names of the quantized layers; None: not quantized.
    """

    module: str
    architecture: str
    place: str | None
    process: Any
    attention: str
    lines: list[str]
    quantization: dict[str, Any] | None = None


class Adapted:
    """A model ready to train.

    Attributes:
        model: a transformers model, or a PEFT model around one.
        parts: part name -> regular expression over this model's parameter names.
        groups: parameter groups that adaptation asks for (`lora_lr`).
        lines: one for each thing that was chosen or is not honoured.
        effective: what was really used, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: dict[str, str],
        groups: list[Group],
        record: Record,
        base: tempfile.TemporaryDirectory | None = None,
    ):
        self.model, self.parts, self.groups = model, parts, groups
        self.record, self.base_folder = record, base
        self.base_copy: Path | None = None
        self.lines = record.lines
        self.effective = {"attention": record.attention}
        self.rates: Mapping[str, float] = {}

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def has_constant_weights(self) -> bool:
        """Whether what is frozen stays as it is: a base under an adapter, or one that is quantized."""
        return self.has_adapter or bool(self.record.quantization)

    def report(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """What was done to the model, as a JSON value; `rates`: parameter name -> learning rate."""
        self.rates = dict(rates)
        described = report.describe(self.model, self.parts, self.rates)
        return {**saved.settings_of(self), "effective": self.effective, "lines": self.lines, **described}

    def table(self, rates: Mapping[str, float]) -> list[str]:
        """`report` as lines of a short table."""
        return report.table(self.report(rates))

    def save(
        self,
        folder: str | Path,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        final: str | Path | None = None,
    ) -> None:
        """Writes the model's files into `folder`: plain weights, or the adapter and its base.

        Args:
            state_dict: the model's weights, where they are not those that it holds now.
            final: What `folder` will be called once it is ready; an adapter's files name the base in it.
        """
        saved.save(self, Path(folder), state_dict, Path(folder if final is None else final))

    def load(self, folder: str | Path) -> None:
        """Puts the trained weights saved in `folder` back into the model.

        Raises:
            ValueError: a weight is missing, unexpected, or of another shape.
        """
        saved.resume(self, Path(folder))
