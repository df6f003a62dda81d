"""The flags: what changes from run to run, what to do instead of training, and how to sweep (`train.py -m …`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.config_keys import (
    EVALUATION,
    EVALUATION_TIME,
    HARMLESS,
    IMPOSSIBLE,
    LOGGING,
    OWN_RULE,
    RemembersGiven,
    key,
)


@dataclass
class HyperArguments(RemembersGiven):
    """What changes from run to run. YAML decides about fields that are not given.

    `HyperArguments(learning_rate=5e-5)` counts as given although 5e-5 is the default, and beats YAML.
    """

    # What to run
    task_name: str | None = key(
        "sim_transfer_cube_state",
        "Task: a file in configs/task/ (its data and environment), or a path; none if the training file has a dataset.",
        on_resume=HARMLESS,
    )
    training_config: str | None = key(
        None, "Training YAML: a file in configs/training/, or a path.", on_resume=HARMLESS
    )
    model_config: str | None = key(
        None,
        "Network: a file in configs/model/, or a path. Default: the task's.",
        aliases=["--policy"],
        on_resume=HARMLESS,
    )
    output_dir: str = key(
        "ckpt/training_output", "Output directory for checkpoints, logs and the final model.", on_resume=HARMLESS
    )
    resume_from_checkpoint: str | None = key(
        None,
        "Resume: auto (newest checkpoint, if any; auto:FOLDER: else that one), newest (there must be one), a folder, "
        "true, false.",
        on_resume=HARMLESS,
        nargs="?",
        const="auto",
    )
    resume_changed: Literal["refuse", "allow"] = key(
        "refuse",
        "On resume, changed settings that change where the training goes: refuse them, or allow and record.",
        on_resume=HARMLESS,
    )
    resume_schedule: Literal["keep", "rebase"] | None = key(
        None,
        "On resume with another length: keep the learning rate's course, or rebase what is left of it.",
        on_resume=HARMLESS,
    )
    seed: int = key(42, "Random seed: weights, sample order, dropout.", ge=0, lt=2**32)
    # Length and batch
    num_train_epochs: float = key(
        3.0, "Number of training epochs; -1 trains until something stops it.", ge=-1, on_resume=OWN_RULE
    )
    max_steps: int = key(
        -1, "Maximum number of training steps; -1 leaves the length to num_train_epochs.", ge=-1, on_resume=OWN_RULE
    )
    per_device_train_batch_size: int = key(8, "Training batch size per device.", ge=1, on_resume=OWN_RULE)
    per_device_eval_batch_size: int = key(8, "Evaluation batch size per device.", ge=1, on_resume=EVALUATION)
    global_batch_size: int | None = key(
        None,
        "Samples of one step: batch size per device × accumulated batches × processes, solved for it.",
        ge=1,
        on_resume=OWN_RULE,
    )
    # Optimization
    learning_rate: float = key(5e-5, "Learning rate, at the end of the warm-up.", ge=0, on_resume=OWN_RULE)
    weight_decay: float = key(
        0.0, "Weight decay; biases and normalization weights are left out.", ge=0, on_resume=OWN_RULE
    )
    warmup_steps: float = key(0, "Number of warmup steps (below 1: a share of all steps).", ge=0)
    warmup_ratio: float = key(0.0, "Share of all steps that warms up.", ge=0, le=1)
    lr_scheduler_type: str = key(
        "linear", "Learning rate scheduler type: linear, cosine, constant …, or a torch.optim.lr_scheduler class."
    )
    min_lr: float | None = key(None, "Learning rate that the schedule decays to, or never goes below.", ge=0)
    lr_decay_iters: int | None = key(None, "Steps after which the schedule ends; default: the whole run.", ge=1)
    optim: str = key(
        "adamw_torch_fused",
        "Optimizer type: a name of TrainingArguments, a torch.optim or pytorch-optimizer class.",
        on_resume=IMPOSSIBLE,
    )
    adam_beta1: float = key(0.9, "Adam's first beta.", ge=0, lt=1)
    adam_beta2: float = key(0.999, "Adam's second beta.", ge=0, lt=1)
    adam_epsilon: float = key(1e-8, "Adam's epsilon.", ge=0)
    # Logging and saving
    logging_dir: str | None = key(None, "TensorBoard's directory. Default: OUTPUT_DIR/runs/.", on_resume=HARMLESS)
    logging_strategy: Literal["no", "steps", "epoch"] = key("steps", "When to log.", on_resume=LOGGING)
    logging_steps: float = key(
        10, "Log every this many steps (below 1: a share of all steps).", gt=0, on_resume=LOGGING
    )
    report_to: list[str] = key(
        ["tensorboard"], "Reporting backends: tensorboard, wandb, trackio …; none; all.", on_resume=HARMLESS
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = key(
        "steps", "When to save a checkpoint.", on_resume=HARMLESS
    )
    save_steps: float = key(
        500, "Save every this many steps (below 1: a share of all steps).", gt=0, on_resume=HARMLESS
    )
    save_total_limit: int | None = key(None, "Keep at most this many checkpoints.", ge=1, on_resume=HARMLESS)
    # Data loading
    dataloader_num_workers: int = key(
        0, "Worker processes that load data; 0 loads in the training process.", ge=0, on_resume=HARMLESS
    )
    dataloader_pin_memory: bool = key(True, "Pin host memory, for faster copies to the GPU.", on_resume=HARMLESS)
    remove_unused_columns: bool = key(False, "Drop batch keys that the model's forward does not name.")
    # Evaluation
    do_eval: bool = key(True, "Evaluate on the held-out split, every eval_steps.", on_resume=EVALUATION_TIME)
    eval_steps: float | None = key(
        None, "Evaluate every this many steps (below 1: a share). Default: save_steps.", gt=0, on_resume=EVALUATION_TIME
    )


@dataclass
class CommandArguments(RemembersGiven):
    """What to do instead of training, and single overrides."""

    check: bool = key(False, "Validate everything that needs no GPU, print a summary, exit 0 or 2.")
    print_config: str | None = key(
        None,
        "Print the merged configuration with each value's origin: yaml or json.",
        nargs="?",
        const="yaml",
        choices=("yaml", "json"),
    )
    print_schema: bool = key(False, "Print the JSON schema of a training file, for editors.")
    completion: str | None = key(
        None, 'Print a script that completes this command line: eval "$(… --completion bash)".', choices=("bash", "zsh")
    )
    estimate_memory: str | None = key(
        None,
        "Print the peak memory of a process by part, without a GPU: table or json.",
        nargs="?",
        const="table",
        choices=("table", "json"),
    )
    gpu_memory: str | None = key(
        None, "With --estimate_memory: what a GPU has (24GiB); if it is not enough, what to change, and exit code 2."
    )
    num_processes: int | None = key(None, "With --estimate_memory: processes of the run. Default: as launched.", ge=1)
    set: list[str] = key([], "Override any key: --set key.path=value, typed as YAML types it.", action="extend")


# Heading of `--help` -> its first and last flag, in the order of the fields.
FLAG_GROUPS = {
    "what to run": ("task_name", "seed"),
    "length and batch": ("num_train_epochs", "global_batch_size"),
    "optimization": ("learning_rate", "adam_epsilon"),
    "logging and saving": ("logging_dir", "save_total_limit"),
    "data loading": ("dataloader_num_workers", "remove_unused_columns"),
    "evaluation": ("do_eval", "eval_steps"),
}


@dataclass
class SweepArguments(RemembersGiven):
    """How the combinations of the bare words' values are chosen, and how their runs are started."""

    multirun: bool = key(
        False, "Sweep: a run for each combination of the bare words' values, key=a,b; again: continue.", aliases=["-m"]
    )
    sampler: Literal["grid", "random", "optuna"] = key(
        "grid", "Which combinations: all; drawn at random; or by Optuna, from the results so far."
    )
    trials: int | None = key(None, "Number of runs of the samplers random and optuna.", ge=1)
    sampler_seed: int = key(0, "Seed of the samplers random and optuna.", ge=0, lt=2**31)
    objective: str = key("eval_loss", "Metric of the evaluations by which runs are compared; its best value counts.")
    objective_mode: Literal["min", "max"] | None = key(
        None, "Whether less or more of the objective is better; needed if the metric does not declare it."
    )
    pruner: Literal["median", "halving", "none"] = key(
        "median", "Optuna ends a run early: worse than the median, by successive halving, or never."
    )
    parallel: int = key(1, "Number of runs at the same time; under Slurm the most tasks at the same time.", ge=1)
    launcher: Literal["local", "slurm"] = key("local", "Start the runs here, or as one job array (scripts/slurm/).")
    slurm: str | None = key(None, "Options of sbatch for the job array: '--time=4:00:00 --gpus-per-node=1'.")
