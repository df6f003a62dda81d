"""`RunConfig`: the resolved configuration of one run, with the origin of every value."""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader.errors import Problems
from loader.schema.components import Component
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.process_arguments import ProcessArguments
from loader.schema.sections import FREE_SECTIONS
from loader.schema.training_arguments_fields import trainer_fields
from loader.sources.config_tree import CLI, DEFAULT, SET, Node, find, layer_index, leaves
from loader.sources.yaml_reader import read_scalar


@dataclass
class RunConfig:
    """Everything one run is configured with, typed, with the origin of every value.

    Attributes:
        tree: The merged configuration; all other fields are typed views of it.
        layers: The layers it was merged from, lowest precedence first.
        hyper, process: The flags and the process parameters.
        trainer: Further fields of TrainingArguments that were set.
        optimizer, scheduler: Keyword arguments of their constructors.
        schedule: A `trainer.sections.SchedulerConfig`: what the scheduler counts and monitors.
        param_groups, ema, early_stopping, checkpointing, logging: Instances of the dataclasses in `trainer.sections`.
        callbacks: Import paths, or mappings with `name` and arguments.
        notes: Lines to print once, such as what an alias became.
        dataset, env, model: The chosen components.
        inspected: Checkpoints that were verified for this run, see `loader/resume/find_checkpoint.py`.
    """

    tree: Node
    layers: list[Node]
    hyper: HyperArguments
    process: ProcessArguments
    trainer: dict[str, Any]
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    schedule: Any = field(default_factory=FREE_SECTIONS["scheduler"])
    param_groups: list[Any] = field(default_factory=list)
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)
    ema: Any = None
    early_stopping: Any = None
    checkpointing: Any = None
    logging: Any = None
    notes: list[str] = field(default_factory=list)
    dataset: Component | None = None
    env: Component | None = None
    model: Component | None = None
    inspected: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seed(self) -> int:
        return self.hyper.seed

    @property
    def cache_dir(self) -> Path:
        """Where prepared data lives: `cache_dir`, else $KEEL_HOME, else ~/.cache/keel."""
        folder = self.process.cache_dir or os.environ.get("KEEL_HOME") or "~/.cache/keel"
        return Path(os.path.expanduser(folder)).absolute()

    @property
    def output_dir(self) -> Path:
        return Path(os.path.expanduser(self.hyper.output_dir))

    @property
    def checkpoint_dir(self) -> Path:
        """Where the checkpoint-N folders lie: `checkpointing.dirpath`, else output_dir."""
        folder = self.checkpointing.dirpath if self.checkpointing is not None else None
        return Path(os.path.expanduser(folder)) if folder else self.output_dir

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The optimizer's constructor arguments: its section, and for a class `optim_args` (`momentum=0.5, …`) too."""
        if self.hyper.optim in typing.get_args(trainer_fields()["optim"].annotation):
            return self.optimizer  # transformers reads optim_args itself
        pairs = [pair.partition("=") for pair in (self.trainer.get("optim_args") or "").split(",") if pair.strip()]
        return {name.strip(): read_scalar(value, DEFAULT).plain() for name, _, value in pairs} | self.optimizer

    @property
    def is_endless(self) -> bool:
        return self.hyper.max_steps <= 0 and self.hyper.num_train_epochs == -1

    @property
    def task(self) -> str:
        """The task's name: its file's stem."""
        return Path(self.hyper.task_name).stem

    def place(self, path: str) -> str:
        """` at FILE:LINE:COLUMN` of a key, for an error line; empty for a default."""
        node = find(self.tree, path)
        return node.origin.place if node is not None else ""

    def origins(self) -> dict[str, str]:
        """`{"key.path": "default" | "FILE:LINE" | "cli" | "set"}` for every value."""
        return {path: str(node.origin) for path, node in leaves(self.tree)}

    def was_set(self, path: str) -> bool:
        """Whether a file of the user's, a flag or --set gave this key (its value may equal the default)."""
        return self.layer_index(path) > 1

    def on_command_line(self, path: str) -> bool:
        """Whether a flag or --set gave this key."""
        node = find(self.tree, path)
        return node is not None and node.origin in (CLI, SET)

    def layer_index(self, path: str) -> int:
        """Index of the layer that a key's value comes from: 0 built-in defaults, 1 default.yaml, then by precedence."""
        return layer_index(self.layers, path)


def with_dims(run: RunConfig, dims: dict[str, int]) -> Any:
    """Return the model's config with the dimensions of the data (action_dim, chunk_size …) filled in.

    Raises:
        ConfigError: YAML gives a dimension that contradicts the data; names both places.
    """
    assert run.model is not None
    filled, problems = {}, Problems()
    for name, value in dims.items():
        if not hasattr(run.model.config, name):
            continue
        stated = getattr(run.model.config, name)
        if stated is not None and stated != value:
            data = run.place("dataset.path") or run.place("dataset.name")
            problems.add(
                f"`model.{name}: {stated}`{run.place(f'model.{name}')} contradicts the data (dataset{data}), which has "
                f"{value}; leave `model.{name}` out"
            )
        filled[name] = value
    problems.raise_if_any()
    return dataclasses.replace(run.model.config, **filled)
