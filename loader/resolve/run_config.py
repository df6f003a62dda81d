"""`RunConfig`: the resolved configuration of one run, with the origin of every value."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader.errors import Problems
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.installed import trainer_fields
from loader.schema.keys import FREE_SECTIONS, Component
from loader.schema.process_arguments import ProcessArguments
from loader.sources.config_tree import CLI, DEFAULT, SET, Node, Origin, find, layer_index, leaves, read_scalar

GLOBAL, PER_DEVICE, ACCUMULATED = "global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"
SOLVED = Origin(GLOBAL)  # the origin of a computed key
NEWEST = "newest"  # as auto, but a run without a checkpoint is an error
AUTO_ELSE = "auto:"  # as auto, but a run without a checkpoint starts from the one that follows


@dataclass(frozen=True)
class MemoryRequest:
    """What `--estimate_memory` asks for.

    Attributes:
        words: The command line; with further words at its end it describes the run with these changes.
        form: `table` or `json`.
        gpu_bytes: What may be used; None: nothing is compared.
        processes: Of the run.
    """

    words: tuple[str, ...]
    form: str
    gpu_bytes: int | None
    processes: int


@dataclass
class RunConfig:
    """The typed configuration of one run, with the origin of every value.

    Attributes:
        tree: The merged configuration; all other fields are typed views of it.
        layers: The layers it was merged from, lowest precedence first.
        hyper, process: The flags and the process parameters.
        trainer: Further fields of TrainingArguments that were set.
        optimizer, scheduler: Keyword arguments of their constructors.
        schedule: A `trainer.settings.SchedulerConfig`: what the scheduler counts and monitors.
        param_groups, ema, early_stopping, checkpointing, logging, eval_runner: Instances of the dataclasses in
            `trainer.settings`.
        callbacks: Import paths, or mappings with `name` and arguments.
        notes: Lines to print once, such as what an alias became.
        dataset, env, model, loss: The chosen components; without `loss` the model's own is used.
        trained_in: Folder of the model that is scored; data is normalized as it was in training. None: a new model.
        inspected: Checkpoints that were verified for this run, see `loader/resume/find_checkpoint.py`.
        memory: Estimate the memory instead of training; None: train.
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
    eval_runner: Any = None
    notes: list[str] = field(default_factory=list)
    dataset: Component | None = None
    env: Component | None = None
    model: Component | None = None
    loss: Component | None = None
    trained_in: Path | None = None
    inspected: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)
    memory: MemoryRequest | None = None

    @property
    def seed(self) -> int:
        return self.hyper.seed

    @property
    def samples_per_step(self) -> int:
        """Samples that all processes together take for one optimizer step."""
        return self.hyper.per_device_train_batch_size * self.trainer.get(ACCUMULATED, 1) * launched_processes()

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
    def optim_args(self) -> dict[str, Any]:
        """The options in `optim_args`, `momentum=0.5, …`."""
        pairs = [pair.partition("=") for pair in (self.trainer.get("optim_args") or "").split(",") if pair.strip()]
        return {name.strip(): read_scalar(value, DEFAULT).plain() for name, _, value in pairs}

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The optimizer's constructor arguments: its section, and for a class `optim_args` too."""
        if self.hyper.optim in typing.get_args(trainer_fields()["optim"].annotation):
            return self.optimizer  # transformers reads optim_args itself
        return self.optim_args | self.optimizer

    @property
    def is_endless(self) -> bool:
        return self.hyper.max_steps <= 0 and self.hyper.num_train_epochs == -1

    @property
    def wants_resume(self) -> bool:
        asked = self.hyper.resume_from_checkpoint
        return asked is not None and str(asked).lower() not in ("false", "no", "none")

    @property
    def resumes_newest(self) -> bool:
        """Whether the run resumes from its newest complete checkpoint, if any, and not from a named one."""
        asked = str(self.hyper.resume_from_checkpoint).lower()
        return asked in ("auto", "true", "yes", NEWEST) or asked.startswith(AUTO_ELSE)

    @property
    def task(self) -> str:
        """The task's name: its file's stem; for a training file with its own data, the kind of data."""
        return Path(self.hyper.task_name).stem if self.hyper.task_name else self.dataset.name

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


# Keel's defaults for fields of TrainingArguments, where they differ from transformers'.
OWN_DEFAULTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,  # it replaces a NaN loss by a finite one in the log, and syncs the GPU every step
    "ddp_find_unused_parameters": False,  # it searches the graph for unused parameters in every step
}
TRAINING_LOSS = ("loss", "train_loss", "train/loss")
TRAINING_METRICS = (*TRAINING_LOSS, "grad_norm", "learning_rate")
# Schedules whose rates are options of their own, with the names of these options.
OWN_RATES = {"OneCycleLR": ("max_lr",), "CyclicLR": ("base_lr", "max_lr")}


def ignores_learning_rate(run: RunConfig) -> bool:
    """Whether `learning_rate` has no effect.

    That is so if the schedule takes its rates from its options, and neither a warm-up, nor a minimum, nor a parameter
    group depends on the learning rate.
    """
    hyper, process = run.hyper, run.process
    if hyper.warmup_steps or hyper.warmup_ratio or process.warmup_epochs or hyper.min_lr:
        return False
    if process.lora_lr is not None or any(group.lr is not None for group in run.param_groups):
        return False
    options = {**(run.trainer.get("lr_scheduler_kwargs") or {}), **run.scheduler}
    options_of_rates = OWN_RATES.get(hyper.lr_scheduler_type, ())
    return bool(options_of_rates) and all(options.get(name) is not None for name in options_of_rates)


def warmup(run: RunConfig) -> float:
    """Return the warm-up as TrainingArguments takes it: a number of steps, or below 1 a share of all steps."""
    # A ratio of 1 would mean one step; the largest float below 1 means all steps.
    return min(run.hyper.warmup_ratio, 1 - 2**-53) if run.hyper.warmup_ratio > 0 else run.hyper.warmup_steps


def eval_strategy(run: RunConfig) -> str:
    """Return when to evaluate: `eval_strategy` if it is set, otherwise every `eval_steps` if do_eval is true."""
    if run.process.check_val_every_n_epoch is not None and run.hyper.do_eval:
        return "epoch"
    return run.trainer.get("eval_strategy") or ("steps" if run.hyper.do_eval else "no")


def schedule_counts_epochs(run: RunConfig) -> bool:
    """Whether the schedule counts epochs by default: the classes of torch.optim.lr_scheduler do."""
    return run.hyper.lr_scheduler_type not in typing.get_args(trainer_fields()["lr_scheduler_type"].annotation)


def holds_nothing_out(run: RunConfig) -> bool:
    """Whether the settings of the data already exclude an evaluation set."""
    return run.dataset is not None and getattr(run.dataset.config, "eval_fraction", None) == 0


# ---- the batch of a step ----


def launched_processes() -> int:
    """Return the number of launched processes; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else 1


@contextmanager
def as_if_launched(processes: int | None) -> Iterator[None]:
    """Inside, `processes` count as launched; None: those that are."""
    before = os.environ.get("WORLD_SIZE")
    if processes is not None:
        os.environ["WORLD_SIZE"] = str(processes)
    try:
        yield
    finally:
        if before is not None:
            os.environ["WORLD_SIZE"] = before
        elif processes is not None:
            del os.environ["WORLD_SIZE"]


def batch_line(size: int, steps: int, processes: int | None = None) -> str:
    """Describe a batch: `4 per device × 2 accumulated × 2 processes = 16`."""
    processes = launched_processes() if processes is None else processes
    parts = [f"{size} per device"]
    parts += [f"{steps} accumulated"] if steps > 1 else []
    parts += [f"{processes} processes"] if processes > 1 else []
    return " × ".join(parts) + (f" = {size * steps * processes}" if len(parts) > 1 else "")
