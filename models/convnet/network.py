"""A small convolutional classifier.

Shapes: B batch, C channels of the images, H × W pixels, F channels of the last stage, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from models.convnet.config import GROUP, Architecture, Config
from models.losses.classification import ClassLoss
from models.losses.multi_label import BinaryCrossEntropy
from models.pretrained import pretrained_config

ConvNetConfig = pretrained_config(Architecture, "convnet", "ConvNetConfig", __name__)


def build_network(config: Config) -> ConvNet:
    """See `models.convnet.build`."""
    architecture = {item.name: getattr(config, item.name) for item in fields(Architecture)}
    names = config.labels or [f"LABEL_{index}" for index in range(config.num_labels)]
    id2label = dict(enumerate(names))
    label2id = {name: index for index, name in id2label.items()}
    settings = ConvNetConfig(**architecture, id2label=id2label, label2id=label2id, problem_type=config.problem_type)
    return ConvNet(settings)


class ConvNet(PreTrainedModel):
    """Stages of convolution, norm, ReLU and max pooling -> mean or maximum over all places -> linear head."""

    config_class = ConvNetConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        self.stages = stages(config.num_channels, config.widths, config.stem_stride, config.norm)
        self.head = nn.Linear(config.widths[-1], config.num_labels)
        is_multi_label = config.problem_type == "multi_label_classification"
        self.criterion = BinaryCrossEntropy() if is_multi_label else ClassLoss()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **context: Any) -> dict[str, Any]:
        """Logits and, given labels, the loss.

        Args:
            pixel_values: (B, C, H, W), normalized.
            labels: (B, L) 0 or 1, NaN or negative if unknown; or (B,) indices of the classes.

        Returns:
            {"logits": (B, L)}, with labels also {"loss"}.
        """
        features = self.stages(pixel_values.to(self.dtype))  # (B, F, h, w)
        places = (-2, -1)
        pooled = features.amax(places) if self.config.pooling == "max" else features.mean(places)  # (B, F)
        output = {"logits": self.head(pooled)}
        return output if labels is None else {**self.criterion(output, {"labels": labels}), **output}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Labels that carry loss: known ones of all samples, or samples."""
        return self.criterion.loss_items(batch)


def stages(channels: int, widths: Sequence[int], stem_stride: int, norm: str) -> nn.Sequential:
    """Stages of convolution, norm, ReLU and max pooling: (B, channels, H, W) -> (B, widths[-1], h, w)."""
    strides = [stem_stride, *[1] * (len(widths) - 1)]
    sizes = zip([channels, *widths], widths, strides, strict=False)
    return nn.Sequential(*(_stage(*size, norm) for size in sizes))


def _stage(channels: int, width: int, stride: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width // GROUP, width),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
