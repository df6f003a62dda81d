"""The keys a configuration may hold: where each lives, its type, bounds, default and help text.

A key is one of
- a hyper key: a field of `HyperArguments` (YAML may set a project's own default for it);
- a process key: a field of `ProcessArguments`;
- a field of the installed `TrainingArguments`;
- a section: `dataset`, `env`, `model` (components: `name` and that component's own keys), `optimizer`, `scheduler`,
  `param_groups`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from .hyper import BOUNDS, HyperArguments, flag
from .trainer_fields import REQUIRED, trainer_fields


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
    # Model architecture
    model_name_or_path: str | None = flag(None, "Base weights: a hub id or a folder.")
    is_pretrained: bool = flag(False, "model_name_or_path is one of our own checkpoints.")
    using_ema: bool = flag(False, "Keep an exponential moving average of the weights; evaluate and export it.")
    flash_attn: bool = flag(False, "Flash attention, where it is installed and the GPU can.")
    freeze_vision_tower: bool = flag(False, "Freeze the vision tower.")
    freeze_backbone: bool = flag(False, "Freeze the backbone.")
    tune_mm_mlp_adapter: bool = flag(False, "Train the multimodal projector.")
    llm_loss_weight: float = flag(1.0, "Loss = action loss + this × language loss.", ge=0)
    load_pretrain: bool = flag(False, "Start from an earlier policy's weights, not its optimizer or step.")
    # LoRA
    lora_enable: bool = flag(False, "Train low-rank adapters (PEFT) instead of the weights.")
    lora_module: str = flag("all-linear", "Where: part names (vit, llm), all-linear, module names or a regex.")
    lora_task_type: str = flag("FEATURE_EXTRACTION", "PEFT's task type.")
    lora_r: int = flag(64, "Rank.", ge=1)
    lora_alpha: float = flag(128, "Scale: the update is multiplied by alpha / r.", gt=0)
    lora_dropout: float = flag(0.05, "Dropout before the adapter.", ge=0, lt=1)
    lora_weight_path: str | None = flag(None, "Start from this adapter.")
    lora_bias: Literal["none", "all", "lora_only"] = flag("none", "Which biases train.")
    lora_lr: float | None = flag(None, "Learning rate of the adapter's own parameter group.", ge=0)
    # Quantization
    use_quantization: bool = flag(False, "Quantize frozen linear weights with bitsandbytes.")
    bits: Literal[4, 8, 16] = flag(16, "Bits per quantized weight; 16: not quantized.")
    double_quant: bool = flag(True, "Quantize the quantization constants too (4 bit).")
    quant_type: Literal["nf4", "fp4"] = flag("nf4", "4-bit number format.")
    # Other
    cache_dir: str | None = flag(None, "Prepared data sets and hub files. Default: $KEEL_HOME, ~/.cache/keel.")


# A switch and the keys that only mean something while it is on.
SWITCHES = {
    "lora_enable": tuple(each for each in ProcessArguments.__annotations__ if each.startswith("lora_"))[1:],
    "use_quantization": ("bits", "double_quant", "quant_type"),
}


@dataclass
class OptimizerSection:
    """`optimizer`: which one, and its constructor's own keyword arguments."""

    name: str | None = flag(None, "A name of TrainingArguments (adamw_torch_fused …) or a torch.optim class (SGD …).")
    lr: float | None = flag(None, "The same as `learning_rate`.", ge=0)
    weight_decay: float | None = flag(None, "The same as the key `weight_decay`.", ge=0)
    betas: list[float] | None = flag(None, "The same as `adam_beta1`, `adam_beta2`.")
    eps: float | None = flag(None, "The same as `adam_epsilon`.", ge=0)


@dataclass
class SchedulerSection:
    """`scheduler`: the learning rate's course, and its own keyword arguments."""

    name: str | None = flag(None, "A name of lr_scheduler_type: linear, cosine, constant, cosine_with_min_lr …")


@dataclass
class ParameterGroup:
    """One entry of `param_groups`: parameters that train at their own rate."""

    pattern: str = flag("", "A part that the model names (backbone …) or a regex over parameter names.")
    lr: float | None = flag(None, "Learning rate of the group.", ge=0)
    lr_factor: float | None = flag(None, "Learning rate as a multiple of `learning_rate`.", ge=0)
    weight_decay: float | None = flag(None, "Weight decay of the group.", ge=0)

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("`pattern` is missing: name a part of the model or a regex over parameter names")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"`pattern: {self.pattern}` is not a regular expression: {error}") from None
        if self.lr is not None and self.lr_factor is not None:
            raise ValueError("`lr` and `lr_factor` are both given; keep one")


COMPONENTS = {"dataset": "data", "env": "sim", "model": "models"}  # section -> the folder its `name` is looked up in
FREE_SECTIONS = {"optimizer": OptimizerSection, "scheduler": SchedulerSection}  # further keys go to the constructor
SECTIONS = (*COMPONENTS, *FREE_SECTIONS, "param_groups")

# Kinds of file, and the top-level keys each may hold. A training file may hold any of them.
FILE_SECTIONS = {"task": ("dataset", "env", "model"), "model": ("model",)}

# Bounds that TrainingArguments checks late or not at all.
TRAINER_BOUNDS: dict[str, dict[str, float]] = {
    "gradient_accumulation_steps": {"ge": 1},
    "max_grad_norm": {"ge": 0},
    "label_smoothing_factor": {"ge": 0, "lt": 1},
    "eval_delay": {"ge": 0},
    "dataloader_prefetch_factor": {"ge": 1},
    "torch_empty_cache_steps": {"ge": 1},
    "eval_accumulation_steps": {"ge": 1},
    "data_seed": {"ge": 0},
    "ddp_timeout": {"gt": 0},
}

# Fields of TrainingArguments that would do nothing here, and what to use instead.
TAKEN_OVER = {
    "do_train": "train.py always trains",
    "do_predict": "score a checkpoint with eval.py",
    "train_sampling_strategy": "the data set decides the order of its samples (episode_first, weights)",
    "length_column_name": "the data set decides the order of its samples",
    "label_smoothing_factor": "no model here takes class labels yet",
    "local_rank": "the launcher sets it",
    "auto_find_batch_size": "it changes the batch size, and so the result, unasked; set per_device_train_batch_size",
    "include_num_input_tokens_seen": "no model here reads tokens yet",
    "neftune_noise_alpha": "no model here embeds tokens yet",
    "use_liger_kernel": "no model here is one Liger knows yet",
    "liger_kernel_config": "no model here is one Liger knows yet",
}


@dataclass(frozen=True)
class Key:
    """One declared key: its type, bounds, default and help text."""

    name: str
    annotation: Any
    bounds: dict[str, float]
    default: Any
    help: str


@cache
def keys_of(dataclass_type: type) -> dict[str, Key]:
    """A dataclass's fields as keys; bounds and help come from each field's metadata."""
    import typing

    hints = typing.get_type_hints(dataclass_type)
    keys = {}
    for each in dataclasses.fields(dataclass_type):
        bounds = {name: each.metadata[name] for name in BOUNDS if name in each.metadata}
        if each.default is not dataclasses.MISSING:
            default = each.default
        else:
            default = each.default_factory() if each.default_factory is not dataclasses.MISSING else REQUIRED
        keys[each.name] = Key(each.name, hints[each.name], bounds, default, each.metadata.get("help", ""))
    return keys


@cache
def scalar_keys() -> dict[str, Key]:
    """Every top-level key that is not a section: hyper, process, then the rest of TrainingArguments."""
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    for name, each in trainer_fields().items():
        if name not in keys:
            keys[name] = Key(name, each.annotation, TRAINER_BOUNDS.get(name, {}), each.default, each.help)
    # A few hyper keys are wider in YAML than a flag can say.
    report_to = keys["report_to"]
    keys["report_to"] = dataclasses.replace(report_to, annotation=str | list[str] | None)
    words = trainer_fields()["lr_scheduler_type"].annotation
    keys["lr_scheduler_type"] = dataclasses.replace(keys["lr_scheduler_type"], annotation=words)
    resume = keys["resume_from_checkpoint"]
    keys["resume_from_checkpoint"] = dataclasses.replace(resume, annotation=str | bool | None)
    return keys


@cache
def yaml_keys() -> frozenset[str]:
    """Every key a training file may hold at its top."""
    return frozenset(scalar_keys()) | frozenset(SECTIONS) | {"extends"}
