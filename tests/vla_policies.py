"""Tiny vision-language-action policies of every family, and batches for them."""

from types import SimpleNamespace

import torch

import models.vla

VOCABULARY, EOS = 64, 2
STATE, ACTION, CHUNK, HEIGHT, WIDTH = 6, 3, 4, 24, 32
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIGLIP = {**VISION, "image_size": 32, "patch_size": 8}
IMAGE = {"image_token_id": 60}
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
QWEN_IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}

FAMILIES = {
    "smolvlm": {"vision_config": SIGLIP, "text_config": {"model_type": "llama", **TEXT}, "scale_factor": 2, **IMAGE},
    "idefics3": {"vision_config": SIGLIP, "text_config": {"model_type": "llama", **TEXT}, "scale_factor": 2, **IMAGE},
    "qwen2_vl": {
        "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 32},
        "text_config": QWEN_TEXT,
        **QWEN_IDS,
    },
    "qwen2_5_vl": {
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        "text_config": QWEN_TEXT,
        **QWEN_IDS,
    },
    "qwen3_vl": {
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        "text_config": {**QWEN_TEXT, "head_dim": 8},
        **QWEN_IDS,
    },
    "paligemma": {
        "vision_config": SIGLIP,
        "text_config": {"model_type": "gemma", **TEXT, "head_dim": 8},
        "projection_dim": 32,
        "image_token_id": 60,
    },
    "gemma3": {
        "vision_config": {**SIGLIP, "vision_use_head": False},
        "text_config": {**TEXT, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "mm_tokens_per_image": 4,
        "boi_token_index": 62,
        "eoi_token_index": 63,
        "image_token_index": 60,
    },
    "internvl": {
        "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        "text_config": {"model_type": "qwen2", **TEXT},
        "image_token_id": 60,
    },
}
FAMILIES["gemma3"]["text_config"]["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
PROCESS = {
    "model_name_or_path": None,
    "is_pretrained": False,
    "load_pretrain": False,
    "cache_dir": None,
    "trust_remote_code": False,
    "llm_loss_weight": 1.0,
}


def config_of(family="smolvlm", num_images=2, backbone=None, **keys):
    """The policy's Config; `backbone`: changes of the backbone's fields, or None as its whole configuration."""
    size = {"image_height": HEIGHT, "image_width": WIDTH} if num_images else {"image_height": 0, "image_width": 0}
    dims = {"state_dim": STATE, "action_dim": ACTION, "chunk_size": CHUNK, "num_images": num_images, **size}
    words = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "target_tokens": 0}
    described = {"config": {"model_type": family, **FAMILIES[family], **(backbone or {})}, "image_size": 32}
    return models.vla.Config(**{**dims, **words, **described, **keys})


def policy_of(family="smolvlm", num_images=2, process=None, **keys):
    """A policy with random weights."""
    torch.manual_seed(0)
    return models.vla.build(config_of(family, num_images, **keys), SimpleNamespace(**{**PROCESS, **(process or {})}))


def batch_of(size=3, num_images=2, prompt=5, target=0):
    """A batch as data would collate it: prompts of different lengths, the last chunk ends in padding."""
    random = torch.Generator().manual_seed(1)
    lengths = torch.arange(size) % prompt + 1
    made = {
        "state": torch.randn(size, STATE, generator=random),
        "actions": torch.randn(size, CHUNK, ACTION, generator=random),
        "is_pad": torch.zeros(size, CHUNK, dtype=torch.bool),
        "prompt_ids": torch.randint(3, 50, (size, prompt), generator=random),
        "prompt_mask": torch.arange(prompt) < lengths.flip(0)[:, None],
    }
    made["is_pad"][-1, 2:] = True
    if num_images:
        shape = (size, num_images, 3, HEIGHT, WIDTH)
        made["images"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    if target:
        made["target_ids"] = torch.randint(3, 50, (size, target), generator=random)
        made["target_mask"] = torch.arange(target) < (torch.arange(size) % target + 1)[:, None]
        made["target_loss_mask"] = made["target_mask"].clone()
        made["target_loss_mask"][:, 0] = False
        made["target_loss_mask"][-1, 0] = True
    return made
