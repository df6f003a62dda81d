"""What Keel adds to the fields of `TrainingArguments`: bounds, meaning on resume, required switches, replaced fields.

The fields themselves (names, types, defaults, help texts) are read from the installed version, see
`installed.py`. Metadata means what it means in `storage/config_keys.py`.
"""

from __future__ import annotations

from typing import Any

from storage.config_keys import EVALUATION_TIME, HARMLESS, IMPOSSIBLE, LOGGING, OWN_RULE

# Field, or key of a mapping field -> metadata. `needs_value`: the value that the needed key must contain.
OVERLAY: dict[str, dict[str, Any]] = {
    "optim_target_modules": {"on_resume": IMPOSSIBLE},
    "gradient_accumulation_steps": {"on_resume": OWN_RULE, "ge": 1},
    "max_grad_norm": {"ge": 0},
    "data_seed": {"ge": 0},
    "fp16": {"on_resume": IMPOSSIBLE},
    "fsdp": {"on_resume": IMPOSSIBLE},
    "fsdp_config": {"needs": "fsdp"},
    "deepspeed": {"on_resume": IMPOSSIBLE},
    # Where and in how much memory it is computed
    "use_cpu": {"on_resume": HARMLESS},
    "activation_checkpointing": {"on_resume": HARMLESS},
    "activation_checkpointing_kwargs": {"needs": "activation_checkpointing"},
    "gradient_checkpointing": {"on_resume": HARMLESS},
    "gradient_checkpointing_kwargs": {"needs": "gradient_checkpointing"},
    "use_cache": {"on_resume": HARMLESS},
    "torch_empty_cache_steps": {"on_resume": HARMLESS, "ge": 1},
    "accelerator_config.non_blocking": {"on_resume": HARMLESS},
    "ddp_find_unused_parameters": {"on_resume": HARMLESS},
    "ddp_bucket_cap_mb": {"on_resume": HARMLESS},
    "ddp_static_graph": {"on_resume": HARMLESS},
    "ddp_backend": {"on_resume": HARMLESS},
    "ddp_timeout": {"on_resume": HARMLESS, "gt": 0},
    # What only some models and data can use: see `checks/runtime_checks.py`
    "label_smoothing_factor": {"ge": 0},
    "neftune_noise_alpha": {"ge": 0},
    "liger_kernel_config": {"needs": "use_liger_kernel"},
    # How batches are loaded, not which
    "dataloader_persistent_workers": {"on_resume": HARMLESS},
    "dataloader_prefetch_factor": {"on_resume": HARMLESS, "ge": 1},
    "dataloader_multiprocessing_context": {"on_resume": HARMLESS},
    # Logs
    "logging_first_step": {"on_resume": LOGGING},
    "logging_nan_inf_filter": {"on_resume": LOGGING},
    "log_on_each_node": {"on_resume": HARMLESS},
    "log_level": {"on_resume": HARMLESS},
    "log_level_replica": {"on_resume": HARMLESS},
    "disable_tqdm": {"on_resume": HARMLESS},
    "debug": {"on_resume": HARMLESS},
    "skip_memory_metrics": {"on_resume": HARMLESS},
    "run_name": {"on_resume": HARMLESS, "needs": "report_to"},
    "project": {"on_resume": HARMLESS, "needs": "report_to", "needs_value": "trackio"},
    "trackio_space_id": {"on_resume": HARMLESS, "needs": "report_to", "needs_value": "trackio"},
    "trackio_bucket_id": {"on_resume": HARMLESS, "needs": "report_to", "needs_value": "trackio"},
    "trackio_static_space_id": {"on_resume": HARMLESS, "needs": "report_to", "needs_value": "trackio"},
    # Evaluation and saves
    "eval_strategy": {"on_resume": EVALUATION_TIME},
    "eval_delay": {"on_resume": EVALUATION_TIME, "ge": 0},
    "eval_on_start": {"on_resume": EVALUATION_TIME},
    "save_only_model": {"on_resume": HARMLESS},
    "load_best_model_at_end": {"on_resume": HARMLESS},
    "metric_for_best_model": {"on_resume": HARMLESS},
    "greater_is_better": {"on_resume": HARMLESS, "needs": "metric_for_best_model"},
    "restore_callback_states_from_checkpoint": {"on_resume": HARMLESS},
    "push_to_hub": {"on_resume": HARMLESS},
    "hub_token": {"on_resume": HARMLESS},
    "hub_private_repo": {"on_resume": HARMLESS, "needs": "push_to_hub"},
    "hub_model_id": {"on_resume": HARMLESS, "needs": "push_to_hub"},
    "hub_revision": {"on_resume": HARMLESS, "needs": "push_to_hub"},
}

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
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "label_names",
        ),
        "an evaluation gathers only losses; eval.py scores predictions",
    ),
    "parallelism_config": "it is an object of accelerate; set it in the file given to accelerate launch",
}
