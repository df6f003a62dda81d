"""What Keel adds to the fields of `TrainingArguments`: bounds, meaning on resume, required switches, replaced fields.

The fields themselves (names, types, defaults, help texts) are read from the installed version, see
`installed.py`. Metadata means what it means in `storage/config_keys.py`.
"""

from __future__ import annotations

from storage.config_keys import EVALUATION_TIME, HARMLESS, IMPOSSIBLE, LOGGING, OWN_RULE

# Class of `on_resume` -> fields, or keys of a mapping field. Those that stand nowhere change the trajectory.
ON_RESUME: dict[str, tuple[str, ...]] = {
    IMPOSSIBLE: ("optim_target_modules", "fp16", "fsdp", "deepspeed"),
    OWN_RULE: ("gradient_accumulation_steps",),
    EVALUATION_TIME: ("eval_strategy", "eval_delay", "eval_on_start"),
    LOGGING: ("logging_first_step", "logging_nan_inf_filter"),
    HARMLESS: (
        # where and in how much memory it is computed
        "use_cpu", "activation_checkpointing", "gradient_checkpointing", "use_cache", "torch_empty_cache_steps",
        "accelerator_config.non_blocking", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_static_graph",
        "ddp_backend", "ddp_timeout",
        # how batches are loaded, not which
        "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        # logs, saves, the hub
        "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm", "debug", "skip_memory_metrics",
        "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "save_only_model",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "restore_callback_states_from_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id",
        "hub_revision",
    ),
}  # fmt: skip
# The switch that a field needs, and the value that the switch must contain.
NEEDS: dict[str, tuple[str, ...]] = {
    "fsdp_config": ("fsdp",),
    "activation_checkpointing_kwargs": ("activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing",),
    "liger_kernel_config": ("use_liger_kernel",),
    "greater_is_better": ("metric_for_best_model",),
    "run_name": ("report_to",),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), ("report_to", "trackio")
    ),
    **dict.fromkeys(("hub_private_repo", "hub_model_id", "hub_revision"), ("push_to_hub",)),
}
LEAST = {
    "gradient_accumulation_steps": 1, "max_grad_norm": 0, "data_seed": 0, "torch_empty_cache_steps": 1, "eval_delay": 0,
    "label_smoothing_factor": 0, "neftune_noise_alpha": 0, "dataloader_prefetch_factor": 1,
}  # fmt: skip


# Fields that would have no effect, and what to use instead.
REPLACED: dict[str, str] = {
    "do_train": "train.py always trains",
    "do_predict": "score a checkpoint with eval.py",
    "length_column_name": "the data set decides the order of its samples",
    "local_rank": "the launcher sets it",
    "auto_find_batch_size": "it would change the batch size, and with it the result; set per_device_train_batch_size",
    "include_num_input_tokens_seen": "the log of a language model has `tokens`, at no cost",
    "enable_jit_checkpoint": "a preempted run (SIGTERM) always saves",
    "save_on_each_node": "all processes share one folder, and one of them writes checkpoints",
    "hub_strategy": "push_to_hub pushes the model once, at the end",
    "hub_always_push": "push_to_hub pushes the model once, at the end",
    "bf16_full_eval": "evaluation uses the precision of training; set bf16 or weights_dtype",
    "fp16_full_eval": "evaluation uses the precision of training; set fp16 or weights_dtype",
    **dict.fromkeys(
        (
            "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps",
            "eval_do_concat_batches", "eval_use_gather_object", "label_names",
        ),
        "an evaluation gathers only losses; eval.py scores predictions",
    ),
    "parallelism_config": "it is an object of accelerate; set it in the file given to accelerate launch",
}  # fmt: skip
