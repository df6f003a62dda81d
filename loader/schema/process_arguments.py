"""The process parameters: what is stable for a project, written in YAML."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from storage.config_keys import ADAPTATION, COMPONENT, EVALUATION, EVALUATION_TIME, HARMLESS, IMPOSSIBLE, key

# Who reads a key; of the others it is the trainer or the loader.
component = partial(key, used_by=COMPONENT)
adaptation = partial(key, used_by=ADAPTATION)
lora = partial(adaptation, needs="lora_enable")
quantization = partial(adaptation, needs="use_quantization", on_resume=IMPOSSIBLE)


@dataclass
class ResumeContext:
    """`resume_context`: read longer windows from here on."""

    input_shape: list[int] | None = key(None, "Channels and time steps of a window; null: as the data has them.")
    spatial_reduction: int | None = key(None, "Channels of a position; only 1: it cannot change.", ge=1, le=1)
    temporal_reduction: int | None = key(None, "Time steps of a position; only 1: it cannot change.", ge=1, le=1)
    rope_theta: float | None = key(None, "Slowest rotation of rotary positions; null: as it is.", gt=1)
    max_position_embeddings: int | None = key(None, "Longest context from here on; null: as it is.", ge=1)

    def __post_init__(self) -> None:
        if self.input_shape is not None and len(self.input_shape) != 2:
            raise ValueError(f"`input_shape: {self.input_shape}` must be two numbers, channels and time steps")


@dataclass
class ProcessArguments:
    """What is stable for a project. `configs/training/default.yaml` shows each key with a comment."""

    # Data processing
    preload_data: bool = component(
        False, "Hold the whole data set in memory, at training resolution.", on_resume=HARMLESS
    )
    lazy_preprocess: bool = component(
        False, "Preprocess each sample when it is read; false: once, into a cache on disk.", on_resume=HARMLESS
    )
    episode_first: bool = component(
        False, "Sample an episode uniformly, then a step in it; false: uniformly over steps."
    )
    use_reasoning: bool = component(False, "Train on the recorded reasoning as the text target.")
    use_prev_subtask: bool = component(False, "Append the previous subtask to the instruction.")
    select_seg_token_mask: bool = component(
        False, "Language loss only on the tokens that the data marks.", needs="use_reasoning"
    )
    is_multimodal: bool = component(True, "Give the model images; false: none reach it.", on_resume=IMPOSSIBLE)
    image_aspect_ratio: Literal["square", "pad", "keep"] = component(
        "square", "square: resize; pad: letterbox in the mean colour; keep: as recorded."
    )
    skip_mirrored_data: bool = component(False, "Leave out episodes whose name or attribute says mirrored.")
    history_images_length: int = component(
        1, "Images per camera and sample: the last N frames.", ge=1, on_resume=IMPOSSIBLE
    )
    shuffle: bool = key(True, "Draw the training samples in a new order each epoch; false: as stored.")
    eval_shuffle: bool = key(False, "Evaluate in a (seeded) shuffled order.", on_resume=EVALUATION)
    eval_num_workers: int | None = key(
        None, "Worker processes that load evaluation data; null: as for training.", ge=0, on_resume=HARMLESS
    )
    limit_train_batches: int | float = key(1.0, "Batches of an epoch: a share of them (1.0: all) or a number.", gt=0)
    limit_val_batches: int | float = key(
        1.0, "Batches of an evaluation: a share (1.0: all) or a number.", gt=0, on_resume=EVALUATION
    )
    # Model architecture
    model_name_or_path: str | None = adaptation(None, "Base weights: a hub id or a folder.", is_path=True)
    is_pretrained: bool = adaptation(False, "model_name_or_path is one of our own checkpoints.")
    load_pretrain: bool = adaptation(False, "Start from an earlier policy's weights, not its optimizer or step.")
    load_optimizer: bool = key(
        False,
        "With is_pretrained: start with that run's optimizer state too, at step 0.",
        needs="is_pretrained",
        on_resume=HARMLESS,
    )
    trust_remote_code: bool = adaptation(
        False, "Run code that comes with a model folder or hub id.", on_resume=HARMLESS
    )
    weights_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = adaptation(
        None, "Type of the weights themselves; null: as built or loaded.", on_resume=IMPOSSIBLE
    )
    using_ema: bool = key(
        False, "Keep an exponential moving average of the weights; evaluate and export it.", on_resume=IMPOSSIBLE
    )
    flash_attn: bool = adaptation(False, "Flash attention, where it is installed and the GPU can.")
    freeze_vision_tower: bool = adaptation(False, "Freeze the vision tower.", on_resume=IMPOSSIBLE)
    freeze_backbone: bool = adaptation(False, "Freeze the backbone.", on_resume=IMPOSSIBLE)
    freeze: list[str] = adaptation([], "Freeze these too: part names, module names or regexes.", on_resume=IMPOSSIBLE)
    tune_mm_mlp_adapter: bool = adaptation(
        False, "Train the projector even where freezing or LoRA would keep it fixed.", on_resume=IMPOSSIBLE
    )
    llm_loss_weight: float = component(1.0, "Loss = action loss + this × language loss.", ge=0)
    # LoRA
    lora_enable: bool = adaptation(
        False, "Train low-rank adapters (PEFT) instead of the weights.", on_resume=IMPOSSIBLE
    )
    lora_module: str | list[str] = lora(
        "all-linear", "Where: part names (vit, llm), all-linear, module names or a regex.", on_resume=IMPOSSIBLE
    )
    lora_task_type: str = lora("FEATURE_EXTRACTION", "PEFT's task type.", on_resume=IMPOSSIBLE)
    lora_r: int = lora(64, "Rank.", ge=1, on_resume=IMPOSSIBLE)
    lora_alpha: float = lora(128, "Scale: the update is multiplied by alpha / r.", gt=0)
    lora_dropout: float = lora(0.05, "Dropout before the adapter.", ge=0, lt=1)
    lora_weight_path: str | None = lora(None, "Start from this adapter.", on_resume=HARMLESS, is_path=True)
    lora_bias: Literal["none", "all", "lora_only"] = lora("none", "Which biases train.", on_resume=IMPOSSIBLE)
    lora_lr: float | None = lora(None, "Learning rate of the adapter's own parameter group.", ge=0)
    lora_options: dict[str, Any] = lora(
        {}, "Further fields of PEFT's LoraConfig: use_rslora, use_dora …", on_resume=IMPOSSIBLE
    )
    # Quantization
    use_quantization: bool = adaptation(
        False, "Quantize frozen linear weights with bitsandbytes.", on_resume=IMPOSSIBLE
    )
    bits: Literal[4, 8, 16] = quantization(16, "Bits per quantized weight; 16: not quantized.")
    double_quant: bool = quantization(True, "Quantize the quantization constants too (4 bit).")
    quant_type: Literal["nf4", "fp4"] = quantization("nf4", "4-bit number format.")
    # Rules of the training
    warmup_epochs: float = key(0.0, "Number of warm-up epochs (warmup_steps and warmup_ratio are flags).", ge=0)
    min_epochs: float = key(0.0, "Early stopping does not end a run before this many epochs.", ge=0)
    check_val_every_n_epoch: int | None = key(
        None, "Evaluate at the end of every n-th epoch.", ge=1, on_resume=EVALUATION_TIME
    )
    layer_decay: float = key(
        1.0,
        "Factor of the learning rate for each layer down from the head, which has the full rate; 1: one rate.",
        gt=0,
        le=1,
    )
    no_decay_verbose: bool = key(False, "Print which parameters have no weight decay.", on_resume=HARMLESS)
    grad_clip_threshold: float = key(
        1.0, "grad_clip_pct in the log: percent of steps whose gradient norm is above.", gt=0, on_resume=HARMLESS
    )
    stop_after_nonfinite: int = key(
        10,
        "End the run after this many steps in a row with a loss or gradient that is not finite; each is skipped.",
        ge=1,
        on_resume=HARMLESS,
    )
    tune_batch_size: bool = key(
        False,
        "Find the largest power-of-two multiple of the batch size that fits in memory, and train with it.",
        on_resume=HARMLESS,
    )
    benchmark_train_step: bool = key(
        False, "Log the duration of every step (waits for the GPU each step).", on_resume=HARMLESS
    )
    evaluate_test: bool = key(
        False, "Score the data's test set once, at the end, with the model that the run ends with.", on_resume=HARMLESS
    )
    validate_before_resume: bool = key(
        False, "Evaluate once before a resumed run continues (eval_on_start: before a new one).", on_resume=HARMLESS
    )
    # Checkpoints
    save_in_background: bool = key(
        True,
        "Copy the state to host memory and write it while training continues; false: training waits for the disk.",
        on_resume=HARMLESS,
    )
    max_failed_saves: int = key(
        3,
        "End the run after this many saves in a row have failed (full disk); a single failure is only reported.",
        ge=1,
        on_resume=HARMLESS,
    )
    # Resuming
    resume_lr: float | None = key(None, "On resume: the learning rate from here on.", ge=0, on_resume=HARMLESS)
    resume_weight_decay: float | None = key(None, "On resume: the weight decay from here on.", ge=0, on_resume=HARMLESS)
    resume_context: ResumeContext | None = key(
        None,
        "On resume: longer windows, and other rotary positions; needs a model with `resize_context`.",
        on_resume=HARMLESS,
    )
    resume_token_corruption: bool | dict[str, Any] | None = key(
        None,
        "On resume: null keeps the checkpoint's model.token_corruption, true takes the configured one, false none.",
        on_resume=HARMLESS,
    )
    # Samples of language models
    sample_tokens: int = component(
        0, "Tokens to generate whenever the validation loss improves; 0: none.", ge=0, le=100_000, on_resume=HARMLESS
    )
    sample_prompt: str = component("\n", "Text that a sample continues.", on_resume=HARMLESS, needs="sample_tokens")
    sample_count: int = component(1, "Samples each time.", ge=1, le=1000, on_resume=HARMLESS, needs="sample_tokens")
    sample_temperature: float = component(
        0.8, "Temperature of sampling; 0: always the likeliest token.", ge=0, on_resume=HARMLESS, needs="sample_tokens"
    )
    sample_top_k: int | None = component(
        200, "Sample from the k likeliest tokens; null: from all.", ge=1, on_resume=HARMLESS, needs="sample_tokens"
    )
    # Machine
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu", "ipu", "hpu"] = key(
        "auto", "Kind of device; auto: what there is.", on_resume=HARMLESS
    )
    devices: int | str | list[int] = key(
        "auto", "How many processes (-1 or auto: as launched), or which GPUs [0, 2].", on_resume=HARMLESS
    )
    strategy: str | None = key(
        None,
        "How processes share the work: ddp, ddp_find_unused_parameters_true; null: as launched.",
        on_resume=HARMLESS,
    )
    # Other
    cache_dir: str | None = key(
        None, "Prepared data sets and hub files. Default: $KEEL_HOME, ~/.cache/keel.", on_resume=HARMLESS, is_path=True
    )
