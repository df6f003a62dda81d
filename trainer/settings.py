"""What a run asks of the trainer: the sections of a training file that it acts on, and the settings of a Trainer.

Importing this needs no torch: the loader reads the declarations for `--check` and passes filled instances through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage.config_keys import HARMLESS, IMPOSSIBLE, TRAJECTORY, key

Direction = Literal["min", "max"]


@dataclass
class OptimizerConfig:
    """`optimizer`: which one, and its constructor's own keyword arguments."""

    name: str | None = key(
        None, "A name of TrainingArguments (adamw_torch_fused …), a torch.optim or pytorch-optimizer class."
    )
    lr: float | None = key(
        None, "The same as `learning_rate`; null: the optimizer's own (1e-3; adafactor: relative steps).", ge=0
    )
    weight_decay: float | None = key(None, "The same as the key `weight_decay`.", ge=0)
    betas: list[float] | None = key(None, "The same as `adam_beta1`, `adam_beta2`.")
    eps: float | None = key(None, "The same as `adam_epsilon`.", ge=0)


@dataclass
class SchedulerConfig:
    """`scheduler`: the learning-rate schedule and its keyword arguments."""

    name: str | None = key(None, "A name of lr_scheduler_type (cosine …) or a class of torch.optim.lr_scheduler.")
    interval: Literal["step", "epoch"] | None = key(None, "What it counts; null: epochs for a torch class, else steps.")
    frequency: int = key(1, "It moves once in this many intervals.", ge=1)
    monitor: str | None = key(None, "ReduceLROnPlateau: the metric it follows; null: the evaluation loss.")


@dataclass
class EmaConfig:
    """`ema`: the moving average that `using_ema: true` keeps."""

    decay: float = key(0.999, "Share of the old average kept at each update.", ge=0, lt=1)
    warmup: bool = key(True, "Start from a smaller decay, (1 + n) / (10 + n) after n updates.")
    update_every: int = key(1, "Update the average once in this many steps.", ge=1)


@dataclass
class EarlyStoppingConfig:
    """`early_stopping`: when to end before the last step. `true` takes the defaults, a number is the patience."""

    monitor: str = key("eval_loss", "Metric to follow; val/loss, val_loss and eval_loss are the same.")
    mode: Direction | None = key(None, "Whether less or more is better; null: as the metric declares, less of a loss.")
    patience: int = key(10, "Checks without improvement before stopping.", ge=0)
    min_delta: float = key(0.0, "Change that counts as an improvement.", ge=0)
    check_on_train_epoch_end: bool = key(False, "Check at the end of each epoch; false: after each evaluation.")
    stopping_threshold: float | None = key(None, "Stop as soon as the metric is this good.")
    divergence_threshold: float | None = key(None, "Stop as soon as the metric is this bad.")
    strict: bool = key(True, "A metric that is not there is an error; false: the check is skipped.")
    verbose: bool = key(False, "Print a line for each improvement.", on_resume=HARMLESS)
    check_finite: bool = key(True, "Stop when the metric is not a finite number.")
    log_rank_zero_only: bool = key(False, "Only the first process prints; false: each one does.", on_resume=HARMLESS)


@dataclass
class CheckpointingConfig:
    """`checkpointing`: which checkpoints are saved and kept, beside `save_steps`."""

    monitor: str | list[str] | None = key(None, "Metrics whose best checkpoints are kept.")
    mode: Direction | list[Direction] | dict[str, Direction] | None = key(
        None, "min or max, for all or for each metric; null: as each metric declares, less of a loss."
    )
    save_top_k: int = key(-1, "Best checkpoints kept for each metric: -1 all, 0 none.", ge=-1)
    save_last: bool = key(True, "Keep the newest checkpoint in any case.")
    every_n_epochs: int = key(1, "Save at the end of every n-th epoch; 0: no periodic saves.", ge=0)
    dirpath: str | None = key(None, "Folder of the checkpoints; null: output_dir.")

    def __post_init__(self) -> None:
        monitors = self.monitors
        if isinstance(self.mode, list) and len(self.mode) != len(monitors):
            raise ValueError(f"`mode` has {len(self.mode)} entries for {len(monitors)} monitors; give one for each")
        if isinstance(self.mode, dict) and (different := sorted(set(self.mode) ^ set(monitors))):
            raise ValueError(f"`mode` and `monitor` must name the same metrics; only one of them has `{different[0]}`")
        if len(set(monitors)) != len(monitors):
            raise ValueError(f"`monitor` names one metric twice: {', '.join(monitors)}")
        if self.save_top_k > 0 and not monitors:
            raise ValueError(
                f"`save_top_k: {self.save_top_k}` needs `monitor`, which defines the best; to keep the newest few, set "
                "save_total_limit"
            )

    @property
    def monitors(self) -> list[str]:
        """The monitored metrics as the user names them."""
        return [self.monitor] if isinstance(self.monitor, str) else list(self.monitor or [])

    @property
    def modes(self) -> dict[str, str | None]:
        """`min` or `max` for each monitor, in the monitors' order; None: as it declares."""
        if isinstance(self.mode, dict):
            return {monitor: self.mode[monitor] for monitor in self.monitors}
        modes = self.mode if isinstance(self.mode, list) else [self.mode] * len(self.monitors)
        return dict(zip(self.monitors, modes, strict=True))


@dataclass
class LoggingConfig:
    """`logging`: the logger, and how it calls the run."""

    logger_type: Literal["CSVLogger", "TensorBoardLogger", "WandbLogger"] | None = key(None, "Logger; null: none.")
    name: str | None = key(None, "Name of the run.")
    project: str | None = key(None, "Project the run belongs to.")
    entity: str | None = key(None, "User or team that owns it.")
    group: str | None = key(None, "Larger experiment it is part of.")
    notes: str | None = key(None, "A longer description.")
    log_model: Literal["all", "best"] | bool | None = key(None, "Upload checkpoints: all, best; null: none.")
    mode: Literal["online", "offline", "disabled"] | None = key(None, "Of W&B: offline writes files for `wandb sync`.")
    save_dir: str | None = key(None, "Folder of the logger's files; null: output_dir.")

    @property
    def of_wandb(self) -> list[str]:
        """The keys that were given and that only W&B has."""
        names = ("project", "entity", "group", "notes", "log_model", "mode")
        return [name for name in names if getattr(self, name)]


@dataclass
class ExampleSampler:
    """`eval_runner.example_sampler`: what the generated signals continue."""

    context_length_steps: int | None = key(None, "Time steps before the free run; null: three quarters.", ge=1)


@dataclass
class Sampling:
    """`eval_runner.generator.sampling`: how the next id is chosen."""

    strategy: Literal["argmax", "roulette", "top_k", "top_p"] = key("roulette", "roulette: by all probabilities.")
    temperature: float = key(1.0, "Scores are divided by it.", gt=0)
    top_k: int | None = key(None, "top_k: from so many most probable ids.", ge=1)
    top_p: float | None = key(None, "top_p: from those that sum to this probability.", gt=0, le=1)

    def __post_init__(self) -> None:
        for name in ("top_k", "top_p"):
            if (self.strategy == name) != (getattr(self, name) is not None):
                raise ValueError(f"`{name}` and `strategy: {name}` belong together; give both or none")

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a model's `generate`."""
        temperature = 0.0 if self.strategy == "argmax" else self.temperature
        return {"temperature": temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass
class Generator:
    """`eval_runner.generator`: free runs of the model."""

    enabled: bool = key(True, "Let the model continue held-out signals.")
    rollouts_per_context: int = key(1, "Continuations of each.", ge=1)
    seed: int = key(0, "Seed of the draws.", ge=0)
    sampling: Sampling = field(default_factory=Sampling, metadata={"help": "Its keys, see Sampling."})


@dataclass
class EvalRunnerConfig:
    """`eval_runner`: what is done with each checkpoint after it is written, into OUT/eval_runner/checkpoint-N."""

    enabled: bool = key(True, "false: nothing.")
    metrics_split: Literal["val", "test", "train"] = key("val", "Split that is scored and continued.")
    max_batches: int = key(2, "Batches that are scored.", ge=1)
    example_sampler: ExampleSampler = field(default_factory=ExampleSampler, metadata={"help": "Its keys."})
    generator: Generator = field(default_factory=Generator, metadata={"help": "Its keys, see Generator."})
    analyses: list[Literal["free_run"]] = key(["free_run"], "What is computed beside the metrics.")


@dataclass
class ParameterGroup:
    """One entry of `param_groups`: parameters that train at their own rate."""

    pattern: str = key(
        "", "A part that the model names (backbone …) or a regex over parameter names.", on_resume=IMPOSSIBLE
    )
    lr: float | None = key(None, "Learning rate of the group.", ge=0, on_resume=TRAJECTORY)
    lr_factor: float | None = key(None, "Learning rate as a multiple of `learning_rate`.", ge=0, on_resume=TRAJECTORY)
    weight_decay: float | None = key(None, "Weight decay of the group.", ge=0, on_resume=TRAJECTORY)

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("`pattern` is missing: name a part of the model or a regex over parameter names")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"`pattern: {self.pattern}` is not a regular expression: {error}") from None
        if self.lr is None and self.lr_factor is None and self.weight_decay is None:
            raise ValueError("changes nothing: give `lr`, `lr_factor` or `weight_decay`")
        if self.lr is not None and self.lr_factor is not None:
            raise ValueError("`lr` and `lr_factor` are both given; keep one")


# ---- the settings of a Trainer ----


@dataclass
class TrainerSettings:
    """Settings of a Trainer; the defaults leave transformers' behaviour unchanged.

    Fields with the name of a process parameter or of a section have its meaning, and are passed through by train.py.

    Attributes:
        optimizer_name, optimizer_options: See `optimizers.build_optimizer`; None: `args.optim`.
        param_groups, parts, layer_decay: See `parameter_groups.parameter_groups`.
        schedule: A `lr_curves.LRSchedulerConfig`; None: as `args` says.
        ema: `decay`, `warmup`, `update_every` of the averaged weights; None: no averaging.
        early_stopping, min_epochs: See `early_stopping.EarlyStopping`.
        checkpointing, checkpoint_dir: See `model_checkpoint.ModelCheckpoint`; None: `args.output_dir`.
        resume_lr, resume_weight_decay, validate_before_resume: Used only when a run is resumed.
        callbacks: As in YAML, see `user_callbacks.named_callbacks`.
        csv_dir: Folder of metrics.csv; None: none is written.
        metrics: Prefix of an evaluation's values (`eval`, `eval_<set>`, `test` …) -> `metrics.metric.Metric`; `train`
            -> one whose values follow from the mean training loss.
        directions: Name of each value of the metrics -> `min` or `max`. None: `args.greater_is_better` decides.
        greater_is_better: As the user gave it; None: as `metric_for_best_model` declares.
        loss: A loss of `models.losses` in place of the model's own.
        train_transform: (batch, generator) -> batch, for training batches; see `data.bundle.Bundle`.
        test_datasets: Scored at the end: prefix of the scores (`test`, or `test_<name>` of several) -> data set.
        units: Name of a unit -> its number in a sample (`{"tokens": 1024}`): logged in total and per second.
        processor: Saved beside the model, `save_pretrained(folder)`. None: `files` are enough.
        sampling: (model, seed) -> texts, see `text_samples.WriteSamples`; None: no samples.
        score_checkpoint: (folder of a checkpoint) -> scores, called after each save, see
            `checkpoint_scores.EvaluateCheckpoints`.
        first_optimizer: Checkpoint whose optimizer state a new run starts with.
        earlier_optimizer: On resume, an `optimizers.OptimizerPlan`: that of the checkpoint's run, if it has changed.
        forget_best: On resume, forget the best metric: it is measured in another way now.
        save_in_background, max_failed_saves: See `manager.CheckpointManager`.
    """

    optimizer_name: str | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    param_groups: Sequence[Any] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    layer_decay: float = 1.0
    schedule: Any = None
    no_decay_verbose: bool = False
    ema: Any = None
    early_stopping: Any = None
    min_epochs: float = 0.0
    checkpointing: Any = None
    checkpoint_dir: Path | None = None
    check_val_every_n_epoch: int | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    shuffle: bool = True
    eval_shuffle: bool = False
    eval_num_workers: int | None = None
    stop_after_nonfinite: int = 10
    grad_clip_threshold: float = 1.0
    benchmark_train_step: bool = False
    resume_lr: float | None = None
    resume_weight_decay: float | None = None
    validate_before_resume: bool = False
    callbacks: Sequence[Any] = ()
    csv_dir: Path | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, str] | None = None
    greater_is_better: bool | None = None
    loss: Any = None
    train_transform: Any = None
    test_datasets: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    processor: Any = None
    sampling: Callable[[Any, int], list[str]] | None = None
    score_checkpoint: Callable[[Path], Mapping[str, float]] | None = None
    first_optimizer: Path | None = None
    earlier_optimizer: Any = None
    forget_best: bool = False
    save_in_background: bool = True
    max_failed_saves: int = 3
