"""The settings of a Trainer beyond `TrainingArguments`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from trainer.optimization.hparam_changes import OptimizerPlan
from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.parameter_groups import parameter_groups


@dataclass
class TrainerSettings:
    """Settings of a Trainer; the defaults leave transformers' behaviour unchanged.

    Fields with the name of a process parameter or of a section have its meaning, and are passed through by train.py.

    Attributes:
        optimizer_name, optimizer_options: See `optimizers.build_optimizer`; None: `args.optim`.
        param_groups, parts, layer_decay: See `parameter_groups.parameter_groups`.
        schedule: The learning-rate schedule; None: as `args` says.
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
            `checkpoint_evals.EvaluateCheckpoints`.
        first_optimizer: Checkpoint whose optimizer state a new run starts with.
        earlier_optimizer: On resume, the optimizer's settings in the checkpoint's run, if they have changed.
        forget_best: On resume, forget the best metric: it is measured in another way now.
        save_in_background, max_failed_saves: See `manager.CheckpointManager`.
    """

    optimizer_name: str | None = None
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    param_groups: Sequence[Any] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    layer_decay: float = 1.0
    schedule: LRSchedulerConfig | None = None
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
    earlier_optimizer: OptimizerPlan | None = None
    forget_best: bool = False
    save_in_background: bool = True
    max_failed_saves: int = 3

    def groups_of(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups over a model at these rates; see `parameter_groups.parameter_groups`."""
        return parameter_groups(
            model, learning_rate, weight_decay, self.param_groups, self.parts, layer_decay=self.layer_decay
        )
