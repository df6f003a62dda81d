"""Print a resolved configuration: as YAML with origins (also run.yaml), as JSON, as the summary of `--check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from loader.resolve.run_config import SOLVED, RunConfig, batch_line, eval_strategy, holds_nothing_out, warmup
from loader.resume.find_checkpoint import find_checkpoint
from loader.sources.config_tree import Node, leaves

# Line breaks in YAML that its writer does not escape.
UNREADABLE = ("\x85", "\u2028", "\u2029")
# `training_config` names the file whose content is shown. A token is secret.
LEFT_OUT = ("training_config", "hub_token")

# The last line of a run.yaml (YAML's end of a document); a truncated file has lost it.
END = "...\n"


def as_yaml(run: RunConfig) -> str:
    """Format the merged configuration, each value followed by `# origin`; the text is a valid training file."""
    left_out = (
        {"num_train_epochs"} if run.hyper.max_steps > 0 else set()
    )  # without effect here, but not when read again
    return "".join(line for line in _yaml_lines(run.tree, 0) if line.split(":")[0] not in left_out)


def as_json(run: RunConfig) -> str:
    """`{"key.path": {"value": …, "origin": …}}`."""
    shown = {
        path: {"value": node.plain(), "origin": str(node.origin)}
        for path, node in leaves(run.tree)
        if path not in LEFT_OUT
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _yaml_lines(node: Node, depth: int) -> Iterator[str]:
    for key, child in node.value.items():
        if depth == 0 and key in LEFT_OUT:
            continue
        indent = "  " * depth
        if child.is_mapping and child.value:
            yield f"{indent}{_flow(key)}:\n"
            yield from _yaml_lines(child, depth + 1)
        else:
            # What follows from the global batch size is a comment: other numbers of processes give other values.
            comment = "# " if child.origin == SOLVED else ""
            yield f"{comment}{indent}{_flow(key)}: {_flow(child.plain())}  # {child.origin}\n"


def _flow(value: Any) -> str:
    """Format a value on one line."""
    plain = not any(mark in str(value) for mark in UNREADABLE)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=plain)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text.replace("${env:", "$${env:").replace("${package:", "$${package:")


def summary(run: RunConfig) -> str:
    """Return the summary of `--check`: what a run would do."""
    hyper = run.hyper
    steps = hyper.max_steps
    length = f"{steps} steps" if steps > 0 else f"{hyper.num_train_epochs:g} epochs"
    batch = batch_line(hyper.per_device_train_batch_size, run.trainer.get("gradient_accumulation_steps", 1))
    length = "until something stops it" if run.is_endless else length
    warm = warmup(run)
    warm_text = f", warm-up {warm:g} steps" if warm >= 1 else f", warm-up {warm:.0%} of the run" if warm > 0 else ""
    every = hyper.eval_steps or hyper.save_steps
    by_step = f"every {every:g} steps" if every >= 1 else f"every {every:.0%} of the run"
    evaluation = {"no": "none", "epoch": "each epoch"}.get(eval_strategy(run), by_step)
    if holds_nothing_out(run):
        evaluation = "none: the data holds nothing out"
    point = find_checkpoint(run).point if run.wants_resume else None
    source = getattr(run.dataset.config, "path", None) or ("(recorded on first use)" if run.env is not None else "")
    rate = "relative steps" if run.optimizer.get("relative_step") else f"learning rate {hyper.learning_rate:g}"
    rows = {
        "task": hyper.task_name or "of its own (the training file has a dataset)",
        "data": f"{run.dataset.name} {source} (the start reads and checks it)".replace("  ", " "),
        "model": run.model.name,
        "length": f"{length}, batch {batch}",
        "optimizer": f"{hyper.optim}, {rate}, {hyper.lr_scheduler_type}{warm_text}",
        "evaluation": evaluation,
        "output": f"{run.output_dir}" + (f", resumed from {point.folder.name}" if point else ""),
    }
    changed = sum(run.was_set(path) and str(node.origin) != "default" for path, node in leaves(run.tree))
    lines = [f"{name:<11} {value}" for name, value in rows.items()]
    lines += run.notes
    lines.append(f"configuration ok: {len(run.origins())} values, {changed} beyond the defaults")
    return "\n".join([*lines, f"the start also checks: {', '.join(left_to_start(run))}"])


def left_to_start(run: RunConfig) -> list[str]:
    """What a run may still be refused for: what needs torch, the data, a GPU or the network."""
    process, trainer = run.process, run.trainer
    named = {"lora_module": process.lora_enable, "freeze": process.freeze, "param_groups": run.param_groups}
    names = [name for name, is_used in named.items() if is_used]
    weights = process.model_name_or_path
    precision = [key for key in ("bf16", "fp16", "tf32") if trainer.get(key)]
    return [
        "the content of the data",
        *([f"the weights at {weights}"] if weights else []),
        *([f"the modules that {', '.join(names)} name"] if names else []),
        *([f"{', '.join(precision)} on this device"] if precision else []),
        *(["that callbacks can be built"] if run.callbacks else []),
        *(["the hub"] if trainer.get("push_to_hub") else []),
    ]
