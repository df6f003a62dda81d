"""The smallest image classifiers of transformers: model type -> fields of its configuration; for 32 × 32 pixels."""

import torch
from adapting import Process

import models.auto

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2], "embedding_size": 8}

NETWORKS = {
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "vit": VIT,
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 8},
    "resnet": {**STAGES, "layer_type": "basic"},
    "mobilevitv2": {"base_attn_unit_dims": [16, 24, 32], "n_attn_blocks": [1, 1, 1], "expand_ratio": 1.0,
                    "width_multiplier": 0.25, "output_stride": 16},
    "focalnet": {"embed_dim": 8, "depths": [1, 2], "hidden_sizes": [8, 16], "focal_levels": [1, 1],
                 "focal_windows": [3, 3], "patch_size": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 32},
    "beit": VIT,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "swin": SWIN,
    "swinv2": SWIN,
    "deit": VIT,
    "bit": {**STAGES, "num_groups": 4},
}  # fmt: skip


def new_network(kind, seed=0, path=None, **settings):
    """A network for three labels of images of 32 pixels; its head is not near zero, as that of a new one is.

    Args:
        path: Folder of a pretrained model, in place of the configuration.
        settings: Further fields of `models.auto.Config`.
    """
    config = None if path else {"model_type": kind, **NETWORKS[kind]}
    sizes = {"num_labels": 3, "labels": ["a", "b", "c"], "image_size": 32, "num_channels": 3, **settings}
    torch.manual_seed(seed)
    model = models.auto.build(
        models.auto.Config(task="image_classification", config=config, **sizes), Process(model_name_or_path=path)
    )
    if path is None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
    return model
