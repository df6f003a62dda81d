"""The network. What is behind the end of a sample never reaches what is before it.

Shapes: B batch, C channels, T time steps, S steps after the stem, D hidden dim, L classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.layers import Encoder, sequence_positions
from models.losses.classification import ClassLoss
from models.pretrained import pretrained_config
from models.signal_classifier.config import Config

SignalClassifierConfig = pretrained_config(Config, "signal_classifier", "SignalClassifierConfig", __name__)


class StemLayer(nn.Module):
    """Convolution, layer norm of each step, GELU, dropout."""

    def __init__(self, channels: int, config: Any, stride: int):
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv1d(channels, config.hidden_dim, config.kernel_size, stride, config.kernel_size // 2)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) and the samples' lengths (B,) -> (B, S, D), 0 behind each end, and their lengths."""
        hidden = self.convolution(inputs.transpose(1, 2)).transpose(1, 2)
        lengths = -(-lengths // self.stride)
        hidden = self.dropout(F.gelu(self.norm(hidden)))
        return hidden.masked_fill(behind(lengths, hidden.shape[1])[..., None], 0.0), lengths


class SignalClassifier(PreTrainedModel):
    """Convolutions -> transformer encoder -> mean over the steps of each sample -> linear head."""

    config_class = SignalClassifierConfig
    main_input_name = "signal"
    supports_gradient_checkpointing = False

    def __init__(self, config: SignalClassifierConfig):
        super().__init__(config)
        dim = config.hidden_dim
        widths = [config.channels, *[dim] * (len(config.strides) - 1)]
        self.stem = nn.ModuleList(
            StemLayer(width, config, stride) for width, stride in zip(widths, config.strides, strict=True)
        )
        self.encoder = None
        if config.layers:
            self.encoder = Encoder(
                config.layers, dim, config.num_heads, config.feedforward_dim, config.dropout, pre_norm=True
            )
        self.head = nn.Linear(dim, config.classes)
        self.criterion = ClassLoss()
        self.post_init()

    def forward(
        self, signal: Tensor, lengths: Tensor | None = None, labels: Tensor | None = None, **context: Any
    ) -> dict[str, Tensor]:
        """Logits and, given labels, the loss.

        Args:
            signal: (B, C, T) values, or ids if the network has a `vocab_size`.
            lengths: (B,) time steps of each sample; what follows is padding. None: all T.
            labels: (B,) indices of the classes, -100: no loss; or (B, L) shares.
            context: other batch keys, which this network does not use.

        Returns:
            {"logits": (B, L)}, with labels also {"loss"}.
        """
        if lengths is None:
            lengths = torch.full((len(signal),), signal.shape[-1], device=signal.device)
        if self.config.vocab_size is not None:
            signal = (2 * signal + 1) / self.config.vocab_size - 1
        hidden = signal.to(self.dtype).transpose(1, 2)
        hidden = hidden.masked_fill(behind(lengths, hidden.shape[1])[..., None], 0.0)
        for layer in self.stem:
            hidden, lengths = layer(hidden, lengths)
        is_pad = behind(lengths, hidden.shape[1])
        if self.encoder is not None:
            positions = sequence_positions(hidden.shape[1], hidden.shape[2], hidden.device).to(hidden.dtype)
            hidden = self.encoder(hidden, positions, is_pad).masked_fill(is_pad[..., None], 0.0)
        output = {"logits": self.head(hidden.sum(1) / lengths[:, None])}
        return output if labels is None else {**self.criterion(output, {"labels": labels}), **output}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Samples that carry loss."""
        return self.criterion.loss_items(batch)


def behind(lengths: Tensor, steps: int) -> Tensor:
    """(B,) -> (B, steps), true behind the end of a sample."""
    return torch.arange(steps, device=lengths.device) >= lengths[:, None]
