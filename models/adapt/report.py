"""Count what adaptation did to each part of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from models.adapt.quantize import element_count, quantized_layers, resident_tensors

OTHER = "(other)"  # the row of weights in no part
MOST_RATES = 3  # that are listed; of more the lowest and the highest
COUNTS = ("parameters", "trained", "frozen", "quantized", "adapter", "adapted")


def describe(model: nn.Module, parts: Mapping[str, str], rates: Mapping[str, float]) -> dict[str, Any]:
    """Return, for each part and in total, what is frozen, trained, quantized and adapted, and how large it is.

    Weights are counted once, in the smallest part that contains them. `parameters` are the model's own, `adapter` those
    that LoRA adds; `trained` and `frozen` add up to `parameters`. `bytes` are resident: they include quantization
    constants, buffers and the unchanged copy of a module that trains completely, but no gradients or optimizer states.
    """
    owner = _owners(model, parts)
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str) -> dict[str, Any]:
        return rows.setdefault(owner(name), {**dict.fromkeys(COUNTS, 0), "learning_rate": set(), "bytes": 0})

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
    total: dict[str, Any] = {key: sum(entry[key] for entry in rows.values()) for key in (*COUNTS, "bytes")}
    total["learning_rate"] = set().union(*(entry["learning_rate"] for entry in rows.values()))
    for entry in (*rows.values(), total):
        entry["learning_rate"] = sorted(entry["learning_rate"])
    return {"parts": rows, "total": total}


def _owners(model: nn.Module, parts: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a parameter's name to the row that counts it: the smallest part that contains it.

    Parts of the same regular expression share a row, `backbone, vision_tower`.
    """
    shared: dict[str, list[str]] = {}
    for part, regex in parts.items():
        shared.setdefault(regex, []).append(part)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    by_size = sorted(shared, key=lambda regex: sum(bool(re.search(regex, name)) for name in names))
    return lambda name: next((", ".join(shared[regex]) for regex in by_size if re.search(regex, name)), OTHER)


def table(described: Mapping[str, Any]) -> list[str]:
    """Return one line for each part, and one for the total."""
    lines = [("part", *COUNTS, "learning rate", "bytes")]
    for part, row in {**described["parts"], "total": described["total"]}.items():
        rates = [f"{rate:g}" for rate in row["learning_rate"]] or ["-"]
        counts = (f"{row[key]:,}" if row[key] else "-" for key in COUNTS)
        shown = ", ".join(rates) if len(rates) <= MOST_RATES else f"{rates[0]} … {rates[-1]}"
        lines.append((part, *counts, shown, _bytes(row["bytes"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            word.rjust(width) if column else word.ljust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def _bytes(size: float) -> str:
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
