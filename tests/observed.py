"""Key -> the test that flips it and sees its effect; `test_every_key.py` holds the two against one another.

Keys of components are written `section(component).key`. A further key in a configuration needs a line here.
"""

FLAGS = "tests/entries/test_keys_flags.py::test_"
RULES = "tests/entries/test_keys_rules.py::test_"
NETWORKS = "tests/entries/test_keys_networks.py::test_"
TRANSFORMERS = "tests/entries/test_keys_transformers.py::test_"
ARRIVES = "tests/loader/test_training_arguments.py::test_every_field_of_training_arguments_arrives"
SAMPLES = "tests/data/test_demonstrations.py::test_"
IMAGES = "tests/data/test_demonstration_images.py::test_"
STORAGE = "tests/data/test_demonstration_storage.py::test_"
ADAPT = "tests/models/test_adapt.py::test_"
QUANTIZED = "tests/models/test_adapt_quantized.py::test_"
ACT = "tests/models/test_act.py::test_"
BACKBONE = "tests/models/test_backbone.py::test_"
CHUNKING = "tests/models/test_chunking.py::test_"
TEXT_RUNS = "tests/entries/test_text_runs.py::test_"
TEXT = "tests/data/test_text.py::test_"
MIXING = "tests/data/test_text_mixing.py::test_"
RECORDS = "tests/data/test_records.py::test_"
GPT = "tests/models/test_gpt.py::test_"
CONTRACT = "tests/entries/test_resume_contract.py::test_"


def each(place: str, words: str, before: str = "", after: str = "") -> dict[str, str]:
    """The same test for several keys."""
    return {f"{before}{word}{after}": place for word in words.split()}


HYPER = {
    **each(f"{FLAGS}task_name_and_model_config_choose_data_and_network", "task_name model_config"),
    **each(f"{FLAGS}training_config_and_output_dir", "training_config output_dir"),
    **each(f"{FLAGS}seed", "seed"),
    **each(f"{FLAGS}resume_from_checkpoint", "resume_from_checkpoint"),
    **each(
        f"{FLAGS}length_and_batch_sizes",
        "num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size",
    ),
    **each(
        f"{FLAGS}the_learning_rates_course",
        "learning_rate warmup_steps warmup_ratio lr_scheduler_type min_lr lr_decay_iters",
    ),
    **each(f"{FLAGS}optim_and_weight_decay", "optim weight_decay"),
    **each(f"{FLAGS}adams_numbers", "adam_beta1 adam_beta2 adam_epsilon"),
    **each(f"{FLAGS}when_to_log_and_where", "logging_dir logging_strategy logging_steps report_to"),
    **each(f"{FLAGS}when_to_save", "save_strategy save_steps save_total_limit"),
    **each(f"{FLAGS}workers_load_the_data", "dataloader_num_workers dataloader_pin_memory"),
    **each(f"{FLAGS}remove_unused_columns", "remove_unused_columns"),
    **each(f"{FLAGS}when_to_evaluate", "do_eval eval_steps"),
    "resume_changed": f"{CONTRACT}an_allowed_change_is_said_applied_and_recorded",
    "resume_schedule": f"{CONTRACT}an_extended_run_keeps_or_rebases_its_course",
    "global_batch_size": f"{CONTRACT}one_batch_or_several_small_ones",
}
DATA = {
    "preload_data": f"{STORAGE}preloading_needs_neither_cache_nor_files_afterwards",
    "lazy_preprocess": f"{STORAGE}lazy_keeps_no_cache_and_opens_each_file_once",
    "episode_first": f"{SAMPLES}sampling_keys_reach_the_sampler",
    "is_multimodal": f"{IMAGES}is_multimodal_and_cameras_choose_the_images",
    "image_aspect_ratio": f"{IMAGES}image_aspect_ratio",
    "skip_mirrored_data": f"{SAMPLES}skip_mirrored_data_by_name_and_attribute",
    "history_images_length": f"{IMAGES}history_repeats_the_first_frame_and_goes_camera_by_camera",
    **each(f"{RULES}shuffle_and_eval_shuffle", "shuffle eval_shuffle"),
    "eval_num_workers": f"{RULES}eval_num_workers",
    **each(f"{RULES}limit_train_batches_and_limit_val_batches", "limit_train_batches limit_val_batches"),
    "cache_dir": f"{RULES}chunk_size_and_cache_dir",
}
ADAPTATION = {
    "model_name_or_path": "tests/models/test_auto.py::test_pretrained_by_path",
    "is_pretrained": f"{ADAPT}is_pretrained_takes_all_weights_adapters_merged",
    "load_pretrain": f"{ADAPT}load_pretrain_takes_what_fits_and_says_what_does_not",
    "trust_remote_code": f"{NETWORKS}trust_remote_code",
    "weights_dtype": f"{ADAPT}weights_dtype",
    "flash_attn": f"{ADAPT}flash_attention_in_our_own_attention",
    **each(f"{ADAPT}freeze_vision_tower_and_tune_the_projector", "freeze_vision_tower tune_mm_mlp_adapter"),
    "freeze_backbone": f"{ADAPT}frozen_weights_stay_and_the_others_move",
    "freeze": f"{ADAPT}freeze_by_part_module_regex_and_parameter",
    "lora_enable": f"{ADAPT}all_linear_by_hand",
    "lora_module": f"{ADAPT}lora_module_takes_parts_names_regexes_and_lists",
    "lora_task_type": f"{NETWORKS}lora_task_type_chooses_pefts_class",
    **each(f"{NETWORKS}lora_r_alpha_and_dropout", "lora_r lora_alpha lora_dropout"),
    "lora_weight_path": f"{ADAPT}lora_weight_path_starts_from_an_adapter",
    "lora_bias": f"{ADAPT}lora_bias_trains_biases_except_frozen_ones",
    "lora_lr": f"{ADAPT}lora_lr_is_a_group_over_the_adapter_only",
    "lora_options": f"{ADAPT}equals_plain_peft",
    "use_quantization": "tests/models/test_export.py::test_a_quantized_copy_without_lora",
    "bits": f"{QUANTIZED}every_frozen_linear_but_the_head",
    "double_quant": f"{QUANTIZED}four_bit_bytes_by_hand",
    "quant_type": f"{QUANTIZED}four_bit_values_by_hand",
}
# Nothing shipped uses them yet: only their neutral value is accepted.
REFUSED = each(
    "tests/loader/test_resolve.py::test_process_keys_nothing_can_use_are_refused",
    "use_reasoning use_prev_subtask select_seg_token_mask llm_loss_weight",
)
TRAINING = {
    "warmup_epochs": f"{RULES}warmup_epochs",
    "min_epochs": f"{RULES}min_epochs_and_patience",
    "check_val_every_n_epoch": f"{RULES}check_val_every_n_epoch",
    "no_decay_verbose": f"{RULES}no_decay_verbose",
    "grad_clip_threshold": f"{RULES}grad_clip_threshold",
    "stop_after_nonfinite": f"{RULES}stop_after_nonfinite",
    "tune_batch_size": f"{RULES}tune_batch_size",
    **each(f"{RULES}who_writes_checkpoints_and_how_often_that_may_fail", "save_in_background max_failed_saves"),
    "benchmark_train_step": f"{RULES}benchmark_train_step",
    **each(
        f"{RULES}what_a_resumed_run_may_change",
        "validate_before_resume resume_lr resume_weight_decay",
    ),
    **each(f"{RULES}accelerator_and_strategy", "accelerator strategy"),
    "devices": f"{RULES}devices",
    **each(f"{TEXT_RUNS}sample_keys", "sample_tokens sample_prompt sample_count sample_temperature sample_top_k"),
    "load_optimizer": f"{TEXT_RUNS}prev_run_takes_weights_and_optimizer_and_starts_at_step_0",
    "using_ema": f"{RULES}the_averaged_weights_by_hand",
}
SECTIONS = {
    **each(f"{RULES}the_optimizer_section", "name lr weight_decay betas eps", "optimizer."),
    **each(f"{RULES}scheduler_name_interval_and_frequency", "name interval frequency", "scheduler."),
    "scheduler.monitor": f"{RULES}scheduler_monitor",
    **each(f"{RULES}the_averaged_weights_by_hand", "decay warmup update_every", "ema."),
    **each(
        f"{RULES}early_stopping",
        "monitor mode patience min_delta check_on_train_epoch_end stopping_threshold divergence_threshold",
        "early_stopping.",
    ),
    **each(f"{RULES}early_stopping_strict_and_verbose", "strict verbose", "early_stopping."),
    "early_stopping.check_finite": "tests/trainer/test_early_stopping.py::test_stops_where_the_rules_say",
    "early_stopping.log_rank_zero_only": "tests/trainer/test_early_stopping.py::test_which_processes_speak",
    **each(f"{RULES}checkpointing", "monitor mode save_top_k save_last every_n_epochs", "checkpointing."),
    "checkpointing.dirpath": f"{RULES}checkpointing_dirpath",
    **each(f"{RULES}a_table_as_logger_and_its_folder", "logger_type save_dir", "logging."),
    **each(f"{RULES}what_loggers_are_told", "name project entity group notes log_model", "logging."),
    **each(f"{RULES}param_groups", "pattern lr lr_factor weight_decay", "param_groups."),
    "callbacks": f"{RULES}callbacks",
    "extends": "tests/loader/test_resolve.py::test_extends_is_a_chain",
}
COMPONENTS = {
    **each(f"{RULES}a_name_chooses_the_module", "dataset.name env.name model.name"),
    **each(f"{SAMPLES}folders_are_mixed_by_weight", "path weights", "dataset(demonstrations)."),
    **each(f"{SAMPLES}il_studio_layout", "layout control", "dataset(demonstrations)."),
    **each(f"{SAMPLES}state_and_action_keys", "state_keys action_key", "dataset(demonstrations)."),
    "dataset(demonstrations).cameras": f"{IMAGES}is_multimodal_and_cameras_choose_the_images",
    "dataset(demonstrations).image_size": f"{IMAGES}image_aspect_ratio",
    "dataset(demonstrations).chunk_size": f"{RULES}chunk_size_and_cache_dir",
    **each(
        f"{SAMPLES}held_out_episodes_are_whole_and_stay_the_same",
        "eval_fraction split_seed",
        "dataset(demonstrations).",
    ),
    "dataset(demonstrations).max_episodes": f"{SAMPLES}max_episodes_takes_the_first_in_natural_order",
    "dataset(demonstrations).samples_per_epoch": f"{SAMPLES}sampling_keys_reach_the_sampler",
    **each(
        f"{SAMPLES}normalization_mask_and_minimum_std_reach_the_samples",
        "normalization normalization_mask minimum_std",
        "dataset(demonstrations).",
    ),
    "env(aloha).task": "tests/sim/test_aloha.py::test_an_observation_has_the_documented_arrays",
    **each(
        "tests/sim/test_film.py::test_a_camera_is_rendered_in_its_size_and_differently_lit_with_shadows",
        "cameras image_height image_width shadows",
        "env(aloha).",
    ),
    "env(aloha).episode_steps": "tests/sim/test_record.py::test_an_expert_that_never_succeeds_is_an_error",
}
for policy in ("act", "mlp"):
    COMPONENTS |= {
        **each(
            f"{NETWORKS}dims_are_those_that_the_model_reads_and_writes",
            "state_dim action_dim chunk_size num_images image_height image_width",
            f"model({policy}).",
        ),
        f"model({policy}).backbone": f"{BACKBONE}architectures_have_the_published_sizes",
        f"model({policy}).backbone_weights": f"{BACKBONE}pretrained_weights_are_loaded_and_their_norms_frozen",
        f"model({policy}).backbone_norm": f"{BACKBONE}norm_key",
        f"model({policy}).n_action_steps": f"{CHUNKING}select_action_predicts_once_per_executed_chunk",
        f"model({policy}).temporal_ensemble_coeff": f"{CHUNKING}reset_forgets_the_episode_before",
        f"model({policy}).dropout": f"{NETWORKS}dropout_makes_two_passes_of_training_differ",
    }
COMPONENTS |= {
    **each(
        f"{NETWORKS}sizes_of_act", "hidden_dim feedforward_dim encoder_layers cvae_layers latent_dim", "model(act)."
    ),
    **each(f"{NETWORKS}the_same_weights_under_another_architecture", "num_heads pre_norm", "model(act)."),
    "model(act).decoder_layers": f"{ACT}every_decoder_layer_is_used",
    "model(act).kl_weight": f"{ACT}losses_by_hand",
    "model(act).use_cvae": f"{ACT}without_cvae_there_is_no_kl",
    "model(mlp).hidden_dim": f"{NETWORKS}width_of_the_perceptron",
    "model(mlp).hidden_layers": "tests/models/test_mlp.py::test_hidden_layers_and_shapes",
    "model(mlp).loss": "tests/models/test_mlp.py::test_loss_by_hand",
    **each(f"{NETWORKS}a_foreign_model_for_another_task_and_size", "task config vocab_size num_labels", "model(auto)."),
    "model(auto).block_size": "tests/models/test_auto.py::test_block_size_beyond_a_table_of_positions",
}
COMPONENTS |= {
    **each("tests/data/test_text_errors.py::test_path_and_mode", "path", "dataset(text)."),
    "dataset(text).mode": f"{MIXING}multicontext_reads_the_same_offsets",
    "dataset(text).block_size": f"{TEXT}block_size_and_what_the_model_is_built_for",
    "dataset(text).sampling_probs": f"{MIXING}sampling_probs_are_reached",
    **each(
        f"{MIXING}sampling_probs_final_and_sampling_transition",
        "sampling_probs_final sampling_transition",
        "dataset(text).",
    ),
    "dataset(text).interleave": f"{MIXING}interleave_counts",
    "dataset(text).separate_embeddings": f"{MIXING}separate_embeddings",
    "dataset(text).vocab_size": "tests/data/test_text_errors.py::test_no_meta_means_gpt2_or_vocab_size",
    "dataset(records).path": f"{RECORDS}names_in_the_home_folder",
    **each(f"{RECORDS}held_out_by_default_by_folder_and_by_path", "eval_path eval_fraction", "dataset(records)."),
    "dataset(records).tokenizer": f"{RECORDS}a_tokenizer_that_the_weights_do_not_know",
    "dataset(records).block_size": f"{RECORDS}long_records_lose_their_end",
    "dataset(records).packing": f"{RECORDS}packing_off",
    "dataset(records).text_column": "tests/data/test_records_errors.py::test_text_column_must_be_there",
    "dataset(records).loss_on": f"{RECORDS}loss_on_all",
    "dataset(records).chat_template": f"{RECORDS}chat_template_from_settings",
    **each(
        f"{GPT}a_new_network_has_the_sizes_it_is_given_or_the_usual_ones", "n_layer n_head n_embd bias", "model(gpt)."
    ),
    **each(
        f"{GPT}rope_rmsnorm_swiglu_qk_norm_and_grouped_queries_as_in_llama_and_qwen",
        "position rope_theta norm mlp qk_norm n_kv_head",
        "model(gpt).",
    ),
    "model(gpt).mlp_ratio": f"{GPT}widths_of_feed_forward_blocks",
    "model(gpt).dropout": f"{GPT}dropout_acts_in_training_only",
    "model(gpt).tie_head": f"{GPT}saved_and_loaded_bit_for_bit",
    "model(gpt).block_size": f"{GPT}missing_sizes_and_too_long_inputs_are_told",
    "model(gpt).vocab_size": f"{GPT}filled_up_rows_change_neither_loss_nor_gradient",
    **each(
        "tests/models/test_gpt_vocabularies.py::test_a_data_set_has_the_rows_of_its_own_vocabulary",
        "vocab_sizes dataset_names",
        "model(gpt).",
    ),
    "model(gpt).context_names": "tests/models/test_gpt_vocabularies.py::"
    "test_contexts_are_added_and_each_has_its_own_loss",
}
# Fields of TrainingArguments that transformers acts on.
PASSED_ON = {
    "lr_scheduler_kwargs": f"{TRANSFORMERS}lr_scheduler_kwargs",
    "optim_args": f"{TRANSFORMERS}optim_args",
    "optim_target_modules": ARRIVES,
    **each(
        f"{TRANSFORMERS}gradient_accumulation_steps_and_drop_last", "gradient_accumulation_steps dataloader_drop_last"
    ),
    "max_grad_norm": f"{TRANSFORMERS}max_grad_norm",
    "bf16": f"{TRANSFORMERS}bf16",
    **each(
        f"{TRANSFORMERS}checkpointing_of_activations",
        "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs",
    ),
    **each(f"{TRANSFORMERS}torch_compile", "torch_compile torch_compile_backend"),
    "torch_empty_cache_steps": f"{TRANSFORMERS}torch_empty_cache_steps",
    "full_determinism": f"{TRANSFORMERS}full_determinism",
    "data_seed": f"{TRANSFORMERS}data_seed",
    **each(
        f"{TRANSFORMERS}workers_prefetch_persist_and_start",
        "dataloader_prefetch_factor dataloader_in_order dataloader_persistent_workers",
    ),
    "dataloader_multiprocessing_context": f"{TRANSFORMERS}dataloader_multiprocessing_context",
    **each(
        f"{TRANSFORMERS}when_to_evaluate",
        "eval_strategy eval_delay eval_on_start",
    ),
    **each(
        f"{TRANSFORMERS}the_best_model_at_the_end", "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    **{
        name: f"{TRANSFORMERS}{name}"
        for name in (
            "logging_first_step", "logging_nan_inf_filter", "log_level", "disable_tqdm", "skip_memory_metrics",
            "use_cache", "save_only_model", "ignore_data_skip", "restore_callback_states_from_checkpoint",
        )
    },
    "debug": f"{TRANSFORMERS}debug_underflow_overflow",
    **each(f"{RULES}what_loggers_are_told", "run_name project"),
}  # fmt: skip
# What shows only on other hardware, over a network or between processes: that it gets there is all that is seen here.
ONLY_ARRIVES = each(
    ARRIVES,
    "fp16 tf32 torch_compile_mode average_tokens_across_devices "
    "log_on_each_node log_level_replica "
    "trackio_space_id trackio_bucket_id trackio_static_space_id "
    "push_to_hub hub_token hub_private_repo hub_model_id hub_revision "
    "use_cpu accelerator_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed",
)
OBSERVED = {
    **HYPER, **DATA, **ADAPTATION, **TRAINING, **SECTIONS, **COMPONENTS, **PASSED_ON, **ONLY_ARRIVES
}  # fmt: skip
