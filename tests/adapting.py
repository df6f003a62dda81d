"""Process parameters, configurations and batches that the tests of adaptation share."""

import dataclasses
from dataclasses import dataclass, field

import torch

import models.act
import models.auto
import models.gpt


@dataclass
class Process:
    """The process parameters that `models.adapt` reads, at their defaults but for small adapters."""

    model_name_or_path: str | None = None
    is_pretrained: bool = False
    load_pretrain: bool = False
    cache_dir: str | None = None
    trust_remote_code: bool = False
    weights_dtype: str | None = None
    flash_attn: bool = False
    freeze: list = field(default_factory=list)
    freeze_vision_tower: bool = False
    freeze_backbone: bool = False
    tune_mm_mlp_adapter: bool = False
    lora_enable: bool = False
    lora_module: str | list = "all-linear"
    lora_task_type: str = "FEATURE_EXTRACTION"
    lora_r: int = 4
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    lora_weight_path: str | None = None
    lora_bias: str = "none"
    lora_lr: float | None = None
    lora_options: dict = field(default_factory=dict)
    use_quantization: bool = False
    bits: int = 16
    double_quant: bool = True
    quant_type: str = "nf4"


ACT = {
    "hidden_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 24,
    "encoder_layers": 1,
    "cvae_layers": 1,
    "latent_dim": 4,
    "dropout": 0.0,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
GPT = {"n_layer": 1, "n_head": 2, "n_embd": 64, "block_size": 8, "vocab_size": 96, "tie_head": False}
MODULES = {"act": models.act, "gpt": models.gpt, "llama": models.auto, "vit": models.auto}
HEADS = {"act": "head", "gpt": "head", "llama": "lm_head", "vit": "classifier"}
DIMS = {"state_dim": 6, "action_dim": 3, "chunk_size": 5, "num_images": 0, "image_height": 0, "image_width": 0}


def config_of(name, **changes):
    """A tiny network of each kind: a policy and a language model of Keel, and a language and a vision model."""
    if name == "gpt":
        return models.gpt.Config(**{**GPT, **changes})
    if name == "act":
        return models.act.Config(**{**ACT, **DIMS, **changes})
    if name == "llama":
        return models.auto.Config(task="causal_lm", config={**LLAMA, **changes}, vocab_size=96)
    return models.auto.Config(task="image_classification", config={**VIT, **changes}, num_labels=3)


def process_of(**settings):
    return dataclasses.replace(Process(), **settings)


def plain(name, **changes):
    """The network of `config_of`, not adapted."""
    torch.manual_seed(0)
    return MODULES[name].build(config_of(name, **changes), process_of())


def batch_of(name):
    generator = torch.Generator().manual_seed(7)
    if name == "act":
        return {
            "state": torch.randn(2, 6, generator=generator),
            "actions": torch.randn(2, 5, 3, generator=generator),
            "is_pad": torch.arange(5) >= torch.tensor([[5], [3]]),
        }
    if name in ("gpt", "llama"):
        tokens = torch.randint(0, 96, (2, 7), generator=generator)
        return {"input_ids": tokens, "labels": tokens}
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator), "labels": torch.tensor([0, 2])}


@torch.no_grad()
def outputs(model, name):
    """Predictions in evaluation mode."""
    batch = batch_of(name)
    if name == "gpt":
        del batch["labels"]  # with labels it returns the loss alone
    return model.eval()(**batch)["actions" if name == "act" else "logits"]


def build_adapted(name, changes=None, **settings):
    from models import adapt

    torch.manual_seed(0)
    return adapt.build_adapted(MODULES[name], config_of(name, **(changes or {})), process_of(**settings))


@torch.no_grad()
def disturb(model, size=0.05, seed=3):
    """Move every weight that trains, as if the model had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
