"""Aliases that depend on one another across layers: `init_from` with `gpt2_type` or `prev_run_ckpt`, and `decay_lr`."""

from __future__ import annotations

import os

from loader.errors import Problems, did_you_mean
from loader.sources.config_tree import Node, node_of

START_ALIASES = ("init_from", "gpt2_type", "prev_run_ckpt")
GPT2_TYPES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def resolve_combined_aliases(layers: list[Node], problems: Problems) -> None:
    """Replace these aliases by our keys, in place.

    The latest layer that gives an alias counts, and our keys are written into that layer, so that precedence holds.
    """
    _initial_weights(layers, problems)
    _decay(layers, problems)


def initial_weights_choice(layers: list[Node]) -> str | None:
    """The value of `init_from` in the latest layer that has it."""
    values = [layer.value["init_from"].value for layer in layers if "init_from" in layer.value]
    return str(values[-1]) if values and values[-1] is not None else None


def same_setting(alias: str, first: Node, key: str, second: Node) -> str:
    """The error line for one setting that is given under two names."""
    return f"`{alias}`{first.origin.place} and `{key}`{second.origin.place} are the same setting; keep one"


def _pop_latest(layers: list[Node], alias: str) -> tuple[int, Node | None]:
    """Remove an alias from all layers and return the index of the latest layer with a value, and that value's node."""
    latest: tuple[int, Node | None] = (-1, None)
    for index, layer in enumerate(layers):
        node = layer.value.pop(alias, None)
        if node is not None and node.value is not None:
            latest = index, node
    return latest


def _initial_weights(layers: list[Node], problems: Problems) -> None:
    """`init_from`: which network, and whose weights it starts from."""
    (start_at, start), (type_at, gpt2_type), (run_at, run) = (_pop_latest(layers, alias) for alias in START_ALIASES)
    for alias, node in (("init_from", start), ("gpt2_type", gpt2_type), ("prev_run_ckpt", run)):
        if node is not None and not str(node.value).strip():
            problems.add(f"`{alias}`{node.origin.place} is empty; leave it out")
            return
    name = "" if start is None else str(start.value)
    for alias, node, index, has_effect, needed in (
        ("gpt2_type", gpt2_type, type_at, name in GPT2_TYPES, "gpt2"),
        ("prev_run_ckpt", run, run_at, name == "prev_run", "prev_run"),
    ):
        if node is not None and not has_effect and index >= start_at:
            context = f" with `init_from: {name}`{start.origin.place}" if start is not None else ""
            problems.add(
                f"`{alias}: {node.value}`{node.origin.place} has no effect{context}; set init_from {needed}, or leave "
                "it out"
            )
            return
    if start is None:
        return
    keys: dict[str, object] | None = {"model_name_or_path": None, "is_pretrained": False, "load_optimizer": False}
    if name == "resume":
        keys = {"resume_from_checkpoint": "newest"}
    elif name == "prev_run" and run is None:
        problems.add(f"`init_from: prev_run`{start.origin.place} needs `prev_run_ckpt`, the run it starts from")
        return
    elif name == "prev_run":
        keys = {"model_name_or_path": str(run.value), "is_pretrained": True, "load_optimizer": True}
    elif name in GPT2_TYPES:
        chosen = _gpt2_name(name, start, gpt2_type, type_at - start_at, problems)
        if chosen is None:
            return
        keys |= {"model_config": "gpt", "model_name_or_path": chosen}
    elif name != "scratch":
        keys |= {"model_config": "auto", "model_name_or_path": name}
    _write(layers[start_at], keys, start, problems)


def _gpt2_name(name: str, start: Node, gpt2_type: Node | None, layers_later: int, problems: Problems) -> str | None:
    """Which of GPT-2's weights; None after a problem.

    Args:
        layers_later: How many layers after `init_from` the `gpt2_type` is given; negative: before it.
    """
    if gpt2_type is None:
        return name
    if layers_later == 0 and name not in ("gpt2", gpt2_type.value):
        problems.add(f"`init_from: {name}`{start.origin.place} and `gpt2_type: {gpt2_type.value}` contradict; keep one")
        return None
    chosen = name if layers_later < 0 and name != "gpt2" else str(gpt2_type.value)
    if chosen in GPT2_TYPES or "/" in chosen or os.path.isdir(os.path.expanduser(chosen)):
        return chosen
    remedy = did_you_mean(chosen, GPT2_TYPES) or f"; use {', '.join(GPT2_TYPES)}, a hub id or a folder"
    problems.add(f"unknown `gpt2_type: {chosen}`{gpt2_type.origin.place}{remedy}")
    return None


def _write(layer: Node, keys: dict[str, object], start: Node, problems: Problems) -> None:
    """Write the keys that `init_from` stands for into the layer that gives it; later layers still override them."""
    for key, value in keys.items():
        if key not in layer.value:
            layer.value[key] = node_of(value, start.origin)
        elif value not in (None, False):  # null and false only reset an earlier layer
            problems.add(same_setting("init_from", start, key, layer.value[key]))
    effective = [f"`{key}: {value}`" for key, value in keys.items() if value not in (None, False)]
    problems.note(f"init_from {start.value} ({start.origin}) is {', '.join(effective) or 'random weights'}")


def _decay(layers: list[Node], problems: Problems) -> None:
    """`decay_lr`: true is a cosine unless another schedule is named, false is a constant rate."""
    decay_at, decay = _pop_latest(layers, "decay_lr")
    if decay is None:
        return
    if not isinstance(decay.value, bool):
        problems.add(f"`decay_lr: {decay.text or decay.value}`{decay.origin.place} must be true or false")
        return
    named = [index for index, layer in enumerate(layers) if "lr_scheduler_type" in layer.value]
    schedule_at = named[-1] if named else -1
    if schedule_at > decay_at:
        return  # a later layer names the schedule itself
    schedule = layers[schedule_at].value["lr_scheduler_type"] if named else None
    is_constant = schedule is not None and schedule.value == "constant"
    if schedule_at == decay_at and is_constant == decay.value:
        problems.add(
            f"`decay_lr: {str(decay.value).lower()}`{decay.origin.place} contradicts the schedule "
            f"`{schedule.value}`{schedule.origin.place}; leave one out"
        )
    elif (schedule is None or is_constant) if decay.value else not is_constant:
        layers[decay_at].value["lr_scheduler_type"] = node_of("cosine" if decay.value else "constant", decay.origin)
