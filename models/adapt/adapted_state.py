"""What is known about an adapted model: plain data that saving, loading and reporting work on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn


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


@dataclass
class AdaptedState:
    """A model with what adaptation did to it.

    Attributes:
        model: a transformers model, or a PEFT model around one.
        parts: part name -> regular expression over this model's parameter names.
        groups: parameter groups that adaptation asks for (`lora_lr`).
        record: how the model was made.
        base_folder: temporary folder of a base that exists nowhere else; kept until the model is saved.
        base_copy: where that base was last saved.
        rates: parameter name -> learning rate, known once the optimizer is built.
    """

    model: nn.Module
    parts: dict[str, str]
    groups: list[Group]
    record: Record
    base_folder: tempfile.TemporaryDirectory | None = None
    base_copy: Path | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")
