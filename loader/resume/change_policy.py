"""What a changed key does to a run that goes on from a checkpoint: every key of a configuration has a class.

Keys are written as in `settings_of`: `section.key`, and for components `dataset(text).block_size`. A key that is not
here by itself has the class of the longest key here that it lies under.
"""

from __future__ import annotations

from functools import cache
from typing import Any

HARMLESS = "harmless"  # applied: the training goes where it would have gone
EVALUATION = "evaluation"  # as harmless, unless the learning rate or the end of the run follows an evaluation
OCCASION = "occasion"  # the same of when there is one: then early stopping may look at the training loss too
LOGGED = "logged"  # as harmless, unless early stopping follows the training loss, which it takes from the log
TRAJECTORY = "trajectory"  # refused, unless `resume_changed: allow`; then applied and recorded
IMPOSSIBLE = "impossible"  # refused: what the checkpoint holds would not fit, or would mean something else
RULED = "ruled"  # length, batch and rates have rules of their own, see resume_contract.py

# fmt: off
KEYS: dict[str, tuple[str, ...]] = {
    HARMLESS: (
        # which files are read and written; what they hold is compared by itself
        "task_name", "training_config", "model_config", "output_dir", "resume_from_checkpoint", "cache_dir", "extends",
        # resuming itself
        "resume_changed", "resume_schedule", "resume_lr", "resume_weight_decay", "validate_before_resume",
        "restore_callback_states_from_checkpoint",
        # logs and saves
        "logging_dir", "report_to", "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm", "run_name",
        "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "logging", "no_decay_verbose",
        "grad_clip_threshold", "benchmark_train_step", "skip_memory_metrics", "debug",
        "save_strategy", "save_steps", "save_total_limit", "save_only_model", 
        "checkpointing", "save_in_background", "max_failed_saves", "stop_after_nonfinite",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", 
        "hub_revision", "sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k",
        "early_stopping.verbose", "early_stopping.log_rank_zero_only",
        # how the data gets there, not which
        "preload_data", "lazy_preprocess", "dataloader_num_workers", "dataloader_pin_memory", "eval_num_workers",
        "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        # where it is computed, and in how much memory
        "accelerator", "devices", "strategy", "use_cpu", "accelerator_config.non_blocking", "torch_empty_cache_steps",
        "gradient_checkpointing", "activation_checkpointing", "use_cache", "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb", "ddp_static_graph", "ddp_backend", "ddp_timeout",
        # only of a run's first step, which is over
        "load_optimizer", "trust_remote_code", "lora_weight_path", "tune_batch_size",
        # the user's own code: what it does, nobody here can know
        "callbacks",
        # data is recorded with it before a run begins
        "env",
        "dataset(demonstrations).path", "dataset(text).path", "dataset(records).path",
        "model(act).n_action_steps", "model(act).temporal_ensemble_coeff",
        "model(mlp).n_action_steps", "model(mlp).temporal_ensemble_coeff",
    ),
    EVALUATION: ("limit_val_batches", "eval_shuffle", "per_device_eval_batch_size", "dataset(records).eval_path"),
    OCCASION: ("do_eval", "eval_steps", "eval_strategy", "eval_delay", "eval_on_start", "check_val_every_n_epoch"),
    LOGGED: ("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    TRAJECTORY: (
        "seed", "data_seed", "full_determinism", "bf16", "tf32", "flash_attn", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "average_tokens_across_devices", "accelerator_config", "ddp_broadcast_buffers",
        "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "fsdp_config",
        "warmup_steps", "warmup_ratio", "warmup_epochs", "lr_scheduler_type", "scheduler", "lr_scheduler_kwargs",
        "min_lr", "lr_decay_iters", "adam_beta1", "adam_beta2", "adam_epsilon", "optimizer", "optim_args",
        "max_grad_norm", "llm_loss_weight", "ema", "early_stopping", "min_epochs",
        "param_groups.lr", "param_groups.lr_factor", "param_groups.weight_decay", "lora_lr", "lora_alpha",
        "lora_dropout", "model_name_or_path", "is_pretrained", "load_pretrain",
        "shuffle", "episode_first", "limit_train_batches", "dataloader_drop_last", "dataloader_in_order",
        "ignore_data_skip", "remove_unused_columns", "use_reasoning", "use_prev_subtask", "select_seg_token_mask",
        "image_aspect_ratio", "skip_mirrored_data", "dataset",
        "model(act).dropout", "model(act).kl_weight", "model(mlp).dropout", "model(mlp).loss", "model(gpt).dropout",
    ),
    IMPOSSIBLE: (
        "model", "weights_dtype", "fp16", "optim", "optim_target_modules", "param_groups", "using_ema",
        "freeze_vision_tower", "freeze_backbone", "freeze", "tune_mm_mlp_adapter",
        "lora_enable", "lora_module", "lora_task_type", "lora_r", "lora_bias", "lora_options",
        "use_quantization", "bits", "double_quant", "quant_type", "fsdp", "deepspeed",
        "is_multimodal", "history_images_length", "dataset.name", "dataset(demonstrations).state_keys",
        "dataset(demonstrations).action_key", "dataset(demonstrations).cameras", "dataset(demonstrations).image_size",
        "dataset(demonstrations).chunk_size", "dataset(text).mode", "dataset(text).vocab_size",
        "dataset(text).separate_embeddings", "dataset(records).tokenizer",
    ),
    RULED: (
        "max_steps", "num_train_epochs", "learning_rate", "weight_decay", "per_device_train_batch_size",
        "gradient_accumulation_steps", "global_batch_size",
    ),
}
# fmt: on
UNKNOWN = TRAJECTORY  # a field that only another version of transformers has

# Constructor arguments of optimizers that decide what an optimizer remembers.
STRUCTURE = ("rank", "proj_type", "optim_bits", "block_size", "merge_dims", "max_preconditioner_dim")
# Switches among them that decide nothing of the kind.
NO_STATE = ("nesterov", "maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
# Names for one way to compute; what they remember is the same.
SAME_OPTIMIZER = ({"adamw_torch", "adamw_torch_fused", "AdamW"},)


@cache
def classes() -> dict[str, str]:
    return {key: kind for kind, keys in KEYS.items() for key in keys}


def class_of(key: str) -> str | None:
    """The class of a key; None: nobody has thought about it yet."""
    found, parts = classes(), key.split(".")
    for end in range(len(parts), 0, -1):
        path = ".".join(parts[:end])
        general = path.partition("(")[0] + path.partition(")")[2]  # dataset(text).mode -> dataset.mode
        if path in found or general in found:
            return found.get(path) or found[general]
    return None


def class_of_option(before: Any, after: Any, option: str) -> str:
    """The class of a constructor's argument of the optimizer that changed.

    Numbers are read anew at each step. One that was nothing (null, or a momentum of 0) had nothing remembered for it;
    what is no number decides what is remembered.
    """
    if option in NO_STATE:
        return TRAJECTORY
    numbers = all(_is_numeric(each) for each in (before, after))
    vanishes = "momentum" in option and bool(before) != bool(after)
    return IMPOSSIBLE if option in STRUCTURE or not numbers or vanishes else TRAJECTORY


def class_of_optim(before: str, after: str) -> str:
    """The class of another optimizer."""
    return TRAJECTORY if any({before, after} <= same for same in SAME_OPTIMIZER) else IMPOSSIBLE


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_numeric(each) for each in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
