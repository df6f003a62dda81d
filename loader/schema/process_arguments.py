"""The process parameters: what is stable for a project, written in YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from loader.command_line.parser import flag


@dataclass
class ProcessArguments:
    """What is stable for a project. `configs/training/default.yaml` shows each key with a comment."""

    # Data processing
    preload_data: bool = flag(False, "Hold the whole data set in memory, at training resolution.")
    lazy_preprocess: bool = flag(False, "Preprocess each sample when it is read; false: once, into a cache on disk.")
    episode_first: bool = flag(False, "Sample an episode uniformly, then a step in it; false: uniformly over steps.")
    use_reasoning: bool = flag(False, "Train on the recorded reasoning as the text target.")
    use_prev_subtask: bool = flag(False, "Append the previous subtask to the instruction.")
    select_seg_token_mask: bool = flag(False, "Language loss only on the tokens that the data marks.")
    is_multimodal: bool = flag(True, "Give the model images; false: none reach it.")
    image_aspect_ratio: Literal["square", "pad", "keep"] = flag(
        "square", "square: resize; pad: letterbox in the mean colour; keep: as recorded."
    )
    skip_mirrored_data: bool = flag(False, "Leave out episodes whose name or attribute says mirrored.")
    history_images_length: int = flag(1, "Images per camera and sample: the last N frames.", ge=1)
    shuffle: bool = flag(True, "Draw the training samples in a new order each epoch; false: as stored.")
    eval_shuffle: bool = flag(False, "Evaluate in a (seeded) shuffled order.")
    eval_num_workers: int | None = flag(
        None, "Worker processes that load evaluation data; null: as for training.", ge=0
    )
    limit_train_batches: int | float = flag(1.0, "Batches of an epoch: a share of them (1.0: all) or a number.", gt=0)
    limit_val_batches: int | float = flag(1.0, "Batches of an evaluation: a share (1.0: all) or a number.", gt=0)
    # Model architecture
    model_name_or_path: str | None = flag(None, "Base weights: a hub id or a folder.")
    is_pretrained: bool = flag(False, "model_name_or_path is one of our own checkpoints.")
    load_pretrain: bool = flag(False, "Start from an earlier policy's weights, not its optimizer or step.")
    load_optimizer: bool = flag(False, "With is_pretrained: start with that run's optimizer state too, at step 0.")
    trust_remote_code: bool = flag(False, "Run code that comes with a model folder or hub id.")
    weights_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = flag(
        None, "Type of the weights themselves; null: as built or loaded."
    )
    using_ema: bool = flag(False, "Keep an exponential moving average of the weights; evaluate and export it.")
    flash_attn: bool = flag(False, "Flash attention, where it is installed and the GPU can.")
    freeze_vision_tower: bool = flag(False, "Freeze the vision tower.")
    freeze_backbone: bool = flag(False, "Freeze the backbone.")
    freeze: list[str] = flag([], "Freeze these too: part names, module names or regexes.")
    tune_mm_mlp_adapter: bool = flag(False, "Train the projector even where freezing or LoRA would keep it fixed.")
    llm_loss_weight: float = flag(1.0, "Loss = action loss + this × language loss.", ge=0)
    # LoRA
    lora_enable: bool = flag(False, "Train low-rank adapters (PEFT) instead of the weights.")
    lora_module: str | list[str] = flag(
        "all-linear", "Where: part names (vit, llm), all-linear, module names or a regex."
    )
    lora_task_type: str = flag("FEATURE_EXTRACTION", "PEFT's task type.")
    lora_r: int = flag(64, "Rank.", ge=1)
    lora_alpha: float = flag(128, "Scale: the update is multiplied by alpha / r.", gt=0)
    lora_dropout: float = flag(0.05, "Dropout before the adapter.", ge=0, lt=1)
    lora_weight_path: str | None = flag(None, "Start from this adapter.")
    lora_bias: Literal["none", "all", "lora_only"] = flag("none", "Which biases train.")
    lora_lr: float | None = flag(None, "Learning rate of the adapter's own parameter group.", ge=0)
    lora_options: dict[str, Any] = flag({}, "Further fields of PEFT's LoraConfig: use_rslora, use_dora …")
    # Quantization
    use_quantization: bool = flag(False, "Quantize frozen linear weights with bitsandbytes.")
    bits: Literal[4, 8, 16] = flag(16, "Bits per quantized weight; 16: not quantized.")
    double_quant: bool = flag(True, "Quantize the quantization constants too (4 bit).")
    quant_type: Literal["nf4", "fp4"] = flag("nf4", "4-bit number format.")
    # Rules of the training
    warmup_epochs: float = flag(0.0, "Number of warm-up epochs (warmup_steps and warmup_ratio are flags).", ge=0)
    min_epochs: float = flag(0.0, "Early stopping ends no run before this many epochs.", ge=0)
    check_val_every_n_epoch: int | None = flag(None, "Evaluate at the end of every n-th epoch.", ge=1)
    no_decay_verbose: bool = flag(False, "Print which parameters weight decay leaves alone.")
    grad_clip_threshold: float = flag(
        1.0, "grad_clip_pct in the log: percent of steps whose gradient norm is above.", gt=0
    )
    stop_after_nonfinite: int = flag(
        10, "A step whose loss or gradient is not finite is left out; stop after this many in a row.", ge=1
    )
    tune_batch_size: bool = flag(False, "Double the batch size per device until memory says no, then train with it.")
    benchmark_train_step: bool = flag(False, "Log the duration of every step (waits for the GPU each step).")
    validate_before_resume: bool = flag(
        False, "Evaluate once before a resumed run goes on (eval_on_start: a fresh one)."
    )
    # Checkpoints
    save_in_background: bool = flag(
        True, "Copy the state to host memory and write it while training goes on; false: training waits for the disk."
    )
    max_failed_saves: int = flag(
        3, "A checkpoint that cannot be written (full disk) is told; the run ends after this many in a row.", ge=1
    )
    # Resuming
    resume_lr: float | None = flag(None, "On resume: the learning rate from here on.", ge=0)
    resume_weight_decay: float | None = flag(None, "On resume: the weight decay from here on.", ge=0)
    # Samples of language models
    sample_tokens: int = flag(0, "Tokens to generate whenever the validation loss improves; 0: none.", ge=0, le=100_000)
    sample_prompt: str = flag("\n", "Text that a sample goes on from.")
    sample_count: int = flag(1, "Samples each time.", ge=1, le=1000)
    sample_temperature: float = flag(0.8, "Temperature of sampling; 0: always the likeliest token.", ge=0)
    sample_top_k: int | None = flag(200, "Sample from the k likeliest tokens; null: from all.", ge=1)
    # Machine
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu", "ipu", "hpu"] = flag(
        "auto", "Kind of device; auto: what there is."
    )
    devices: int | str | list[int] = flag("auto", "How many processes (-1 or auto: as launched), or which GPUs [0, 2].")
    strategy: str | None = flag(
        None, "How processes share the work: ddp, ddp_find_unused_parameters_true; null: as launched."
    )
    # Other
    cache_dir: str | None = flag(None, "Prepared data sets and hub files. Default: $KEEL_HOME, ~/.cache/keel.")


# A switch and the keys that only mean something while it is on.
SWITCHES = {
    "lora_enable": tuple(each for each in ProcessArguments.__annotations__ if each.startswith("lora_"))[1:],
    "use_quantization": ("bits", "double_quant", "quant_type"),
    "sample_tokens": ("sample_prompt", "sample_count", "sample_temperature", "sample_top_k"),
    "is_pretrained": ("load_optimizer",),
}
