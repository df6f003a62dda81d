"""The image backbone of the policies: a ResNet from transformers, applied to each image of a sample.

Shapes: B batch, K images, H × W pixels, h × w cells of the feature map (1/32 of the pixels), F its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig

from models.chunking import ChunkPolicy
from models.policy import PolicyConfig, require_resnet_dims
from models.pretrained import load_whole_model

# Layer type, channels of the first stage (doubled in each next one), layers per stage.
ARCHITECTURES = {
    "resnet10": ("basic", 64, [1, 1, 1, 1]),
    "resnet18": ("basic", 64, [2, 2, 2, 2]),
    "resnet34": ("basic", 64, [3, 4, 6, 3]),
    "resnet50": ("bottleneck", 256, [3, 4, 6, 3]),
    "resnet101": ("bottleneck", 256, [3, 4, 23, 3]),
}
# Means and standard deviations of ImageNet's channels, for pixels from 0 to 1, as pretrained backbones expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and scales are buffers: neither gradient nor data changes them.

    With the few, similar images of a robot's batch, running statistics would drift from the pretrained ones.
    """

    def __init__(self, source: nn.BatchNorm2d):
        super().__init__()
        self.eps = source.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(source, name).detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(features, *statistics, self.weight, self.bias, training=False, eps=self.eps)


class ImageBackbone(nn.Module):
    """Compute feature maps of uint8 images. One ResNet sees all views, as in ACT."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        layer_type, channels, depths = ARCHITECTURES[config.backbone]
        self.resnet = ResNetBackbone(
            ResNetConfig(
                layer_type=layer_type,
                hidden_sizes=[channels * 2**stage for stage in range(4)],
                depths=depths,
                out_features=["stage4"],
            )
        )
        self.out_channels = channels * 8
        self.register_buffer("pixel_mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1))
        if config.backbone_norm == "group":
            replace_norms(self.resnet, group_norm)
        elif config.backbone_norm == "frozen" or (
            config.backbone_norm == "auto" and config.backbone_weights is not None
        ):
            replace_norms(self.resnet, FrozenBatchNorm2d)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, K, 3, H, W) uint8 -> (B, K, F, h, w)."""
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        features = self.resnet(pixels.flatten(0, 1)).feature_maps[-1]
        return features.unflatten(0, images.shape[:2])


def group_norm(source: nn.BatchNorm2d) -> nn.GroupNorm:
    """Groups of 16 channels, as Diffusion Policy: averaged weights go with no running statistics (arXiv:2303.04137)."""
    return nn.GroupNorm(source.num_features // 16, source.num_features)


def replace_norms(module: nn.Module, replacement: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Replace every batch norm inside `module`, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, replacement(child))
        else:
            replace_norms(child, replacement)


def build_policy(kind: type[ChunkPolicy], config: PolicyConfig, cache_dir: str | None) -> ChunkPolicy:
    """Build a policy for the data's dims, with pretrained backbone weights if `backbone_weights` names some.

    Raises:
        ValueError: a dim is missing, or the backbone's weights are not found or do not fit.
    """
    require_resnet_dims(config)
    model = kind(kind.config_class(**asdict(config)))
    if config.num_images and config.backbone_weights:
        backbone = next(module for module in model.modules() if isinstance(module, ImageBackbone))
        _load_weights(backbone, config.backbone_weights, cache_dir)
    return model


def _load_weights(backbone: ImageBackbone, weights: str, cache_dir: str | None) -> None:
    """Load `backbone` from `weights`, a hub id or the folder of any transformers ResNet."""
    pretrained = load_whole_model(
        ResNetBackbone,
        weights,
        f"model.backbone_weights: {weights}",
        config=ResNetConfig.from_dict(backbone.resnet.config.to_dict()),
        cache_dir=cache_dir,
    )
    # A frozen norm has no count of batches; every other tensor must be there.
    wanted = backbone.resnet.state_dict().keys()
    backbone.resnet.load_state_dict({k: v for k, v in pretrained.state_dict().items() if k in wanted})
