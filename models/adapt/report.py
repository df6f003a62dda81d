"""What adaptation did to each part of a model, in numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.adapt.quantize import element_count, quantized_layers, resident_tensors

OTHER = "(other)"


def describe(model: nn.Module, parts: Mapping[str, str], rates: Mapping[str, float]) -> dict[str, Any]:
    """Per part, and in total, what is frozen, trained, quantized, adapted, and how large it is.

    Weights are counted once, in the smallest part that holds them. `parameters` are the model's own, `adapter` those
    that LoRA adds; `trained` and `frozen` add up to `parameters`. `bytes` are resident: quantization constants, buffers
    and the untouched copy of a module that trains whole are in them, gradients and optimizer states are not.
    """
    owner = _owners(model, parts)
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str) -> dict[str, Any]:
        empty = {"parameters": 0, "trained": 0, "frozen": 0, "quantized": 0, "adapter": 0, "adapted": 0}
        return rows.setdefault(owner(name), {**empty, "learning_rate": set(), "bytes": 0})

    for name, parameter in model.named_parameters():
        count, entry = element_count(parameter), row(name)
        if parameter.requires_grad and name in rates:
            entry["learning_rate"].add(rates[name])
        if ".lora_" in name:
            entry["adapter"] += count
        elif ".original_module." not in f".{name}.":
            entry["parameters"] += count
            entry["trained" if parameter.requires_grad else "frozen"] += count
    for name, layer in quantized_layers(model).items():
        row(f"{name}.weight")["quantized"] += element_count(layer.weight)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            row(f"{name}.weight")["adapted"] += 1
    counted: set[tuple] = set()
    for name, tensor in resident_tensors(model):
        key = (tensor.device, tensor.data_ptr(), tensor.nbytes)
        if key not in counted:  # tied weights, and constants that layers share
            counted.add(key)
            row(name)["bytes"] += tensor.nbytes
    for entry in rows.values():
        entry["learning_rate"] = sorted(entry["learning_rate"])
    return {"parts": rows, "total": _total(rows)}


def _owners(model: nn.Module, parts: Mapping[str, str]) -> Any:
    """Parameter name -> the part that it is counted in; parts of one pattern share a row, `backbone, vision_tower`."""
    shared: dict[str, list[str]] = {}
    for part, regex in parts.items():
        shared.setdefault(regex, []).append(part)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    sizes = {regex: sum(bool(re.search(regex, name)) for name in names) for regex in shared}
    order = sorted(shared, key=sizes.__getitem__)

    def owner(name: str) -> str:
        return next((", ".join(shared[regex]) for regex in order if re.search(regex, name)), OTHER)

    return owner


def _total(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    counts = ("parameters", "trained", "frozen", "quantized", "adapter", "adapted", "bytes")
    total = {key: sum(row[key] for row in rows.values()) for key in counts}
    return {**total, "learning_rate": sorted({rate for row in rows.values() for rate in row["learning_rate"]})}


COLUMNS = ("parameters", "trained", "frozen", "quantized", "adapter", "adapted")


def table(described: Mapping[str, Any]) -> list[str]:
    """One line a part, one for the total."""
    lines = [("part", *COLUMNS, "learning rate", "bytes")]
    for part, row in {**described["parts"], "total": described["total"]}.items():
        rates = ", ".join(f"{rate:g}" for rate in row["learning_rate"]) or "-"
        lines.append((part, *(_count(row[key]) for key in COLUMNS), rates, _bytes(row["bytes"])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def _count(count: int) -> str:
    return f"{count:,}" if count else "-"


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size = size / 1000
    return f"{size:.3g} GB"


def resident_bytes(model: nn.Module) -> int:
    """Bytes of everything that the model holds in memory."""
    held: dict[tuple, torch.Tensor] = {(t.device, t.data_ptr(), t.nbytes): t for _, t in resident_tensors(model)}
    return sum(tensor.nbytes for tensor in held.values())
