"""An adapted model: what the trainer trains, and how it is saved, resumed and described.

Files of a saved model:

    adaptation.json        how the model was made, and what adaptation did to it
    config.json            the model's own configuration
    model.safetensors      its weights, if it has no adapter; quantized layers are written as plain numbers
    quantized.safetensors  beside it, the quantized layers as they were stored
    adapter_*              an adapter, in PEFT's own format
    base/                  the model that the adapter was made for, if it exists nowhere else
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.adapt import quantize as quantization
from models.adapt import report
from models.adapt.checks import ADAPTATION, BASE, QUANTIZED
from models.adapt.submodules import base_name
from models.pretrained import load_model


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own, as an entry of `param_groups`."""

    pattern: str
    lr: float | None = None
    lr_factor: float | None = None
    weight_decay: float | None = None


@dataclass
class AdaptedModel:
    """A model ready to train, with what adaptation did to it.

    Attributes:
        model: a transformers model, or a PEFT model that wraps one.
        parts: part name -> regular expression over this model's parameter names.
        module: dotted name of the component module.
        place: folder or hub id from which its first weights load again; None: nowhere.
        cache_dir, weights_dtype: the process parameters that loading `place` again needs.
        attention: the attention implementation that it computes with.
        lines: what was chosen, and what could not be honoured, one line each.
        groups: parameter groups that adaptation asks for (`lora_lr`).
        quantization: settings and `modules`, the names of the quantized layers; None: not quantized.
        base_folder: temporary folder of a base that exists nowhere else, kept until the process ends.
        base_copy: where that base was last saved.
        rates: parameter name -> learning rate, known once the optimizer is built.
    """

    model: nn.Module
    parts: dict[str, str]
    module: str
    place: str | None
    cache_dir: str | None
    weights_dtype: str | None
    attention: str
    lines: list[str]
    groups: list[Group] = field(default_factory=list)
    quantization: dict[str, Any] | None = None
    base_folder: tempfile.TemporaryDirectory | None = None
    base_copy: Path | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def has_constant_weights(self) -> bool:
        """Whether frozen weights never change: the base of an adapter, or quantized layers."""
        return self.has_adapter or bool(self.quantization)

    @property
    def effective(self) -> dict[str, str]:
        """What is really used, by name."""
        return {"attention": self.attention}

    def report(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what was done to the model, as a JSON value; `rates`: parameter name -> learning rate."""
        self.rates = dict(rates)
        model, lora = self.model, None
        if self.has_adapter:
            from models.adapt.lora import adapted_modules

            model, config = self.model.get_base_model(), self.model.peft_config["default"]
            modules = [base_name(name) for name in adapted_modules(self.model)]
            whole = sorted(config.modules_to_save or ())
            lora = {"r": config.r, "alpha": config.lora_alpha, "modules": modules, "trained_whole": whole}
        return {
            "module": self.module,
            "architecture": type(model).__name__,
            "base": self._absolute_place(),
            "cache_dir": self.cache_dir,
            "weights_dtype": self.weights_dtype,
            "quantization": self.quantization,
            "lora": lora,
            "effective": self.effective,
            "lines": self.lines,
            **report.describe(self.model, self.parts, self.rates),
        }

    def table(self, rates: Mapping[str, float]) -> list[str]:
        """Return `report` as lines of a short table."""
        return report.table(self.report(rates))

    def _absolute_place(self) -> str | None:
        """Return the absolute path of a folder or file, so that it is found from anywhere; a hub id is unchanged."""
        exists = self.place is not None and os.path.exists(self.place)
        return str(Path(self.place).absolute()) if exists else self.place

    def save(
        self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None, final: str | Path | None = None
    ) -> None:
        """Write the model's files into `folder`: plain weights, or the adapter and its base.

        Args:
            state_dict: the model's weights, if other than those that it has now.
            final: the name that `folder` will have at the end; an adapter's files contain the path of its base.
        """
        folder, model = Path(folder), self.model
        folder.mkdir(parents=True, exist_ok=True)
        if self.has_adapter:
            self._save_base(folder, Path(final or folder))
            model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
            base = model.get_base_model()
            base.config.architectures = [type(base).__name__]
            base.config.save_pretrained(folder)
        elif self.quantization:
            state = model.state_dict() if state_dict is None else state_dict
            model.save_pretrained(str(folder), state_dict=quantization.plain_state(model, state))
            save_file(quantization.packed_state(model), folder / QUANTIZED)
        else:
            model.save_pretrained(str(folder), state_dict=state_dict)
        text = json.dumps(self.report(self.rates), indent=1, default=str)
        (folder / ADAPTATION).write_text(text + "\n", encoding="utf-8")

    def _save_base(self, folder: Path, final: Path) -> None:
        """Write into the adapter's configuration where its base is; copy a base that exists nowhere else."""
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = self._absolute_place()
        if self.base_folder is None:
            return
        # PEFT supports no path relative to the adapter. Keel's loaders look beside it, so the folder may be moved.
        config.base_model_name_or_path = str((final / BASE).absolute())
        if not (folder / BASE / "config.json").is_file():
            # Linking to the last checkpoint costs nothing; if that has been deleted, copy from the temporary folder.
            copied = self.base_copy is not None and (self.base_copy / "config.json").is_file()
            source = self.base_copy if copied else self.base_folder.name
            shutil.rmtree(folder / BASE, ignore_errors=True)
            shutil.copytree(source, folder / BASE, copy_function=_link_or_copy)
        self.base_copy = final / BASE

    def load(self, folder: str | Path) -> None:
        """Load the trained weights saved in `folder` back into the model.

        Raises:
            ValueError: a weight is missing, unexpected, or of another shape, or the adapter's base is another one.
        """
        folder, model = Path(folder), self.model
        if self.has_adapter:
            from models.adapt.lora import load_weights

            self._refuse_other_base(folder)
            load_weights(model, folder)
            return
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: has no config.json; resume from a finished checkpoint")
        config = copy.deepcopy(model.config)
        stored, wrong = load_model(type(model), folder, str(folder), config=config, local_files_only=True, strict=True)
        if wrong:
            raise ValueError(
                f"{folder}: {len(wrong)} weights are missing, unexpected or of another shape, first {min(wrong)}; "
                "resume with the model that wrote it"
            )
        packed = quantization.packed_state(model).keys()
        weights = {name: value for name, value in stored.state_dict().items() if name not in packed}
        model.load_state_dict(weights, strict=False)

    def _refuse_other_base(self, folder: Path) -> None:
        """Raise ValueError if the saved adapter was trained on other random weights (another seed)."""
        if self.base_folder is None:
            return
        for file in sorted((folder / BASE).glob("*.safetensors")):
            current = Path(self.base_folder.name) / file.name
            ours = load_file(current) if current.is_file() else {}
            for name, value in load_file(file).items():
                if name not in ours or not torch.equal(value, ours[name]):
                    raise ValueError(
                        f"{folder / BASE}: the adapter was trained on other base weights, first {name}; resume with "
                        "the same `seed`, `model_name_or_path` and model settings"
                    )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
