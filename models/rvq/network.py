"""The network. Encoder and decoder are causal: a frame's ids depend on no later sample, and no sample on later ids.

Shapes: B signals, n samples, F = n / hop frames, W width, E code dim, Q quantizers, K levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from models.pretrained import pretrained_config
from models.rvq.config import Config

RVQSettings = pretrained_config(Config, "rvq", "RVQSettings", __name__)


class RVQConfig(RVQSettings):
    """Has `hop`, the samples of a frame, too, so that it stands in config.json."""

    def __init__(self, **values: Any):
        values.pop("hop", None)
        super().__init__(**values)
        self.hop = Config(strides=self.strides).hop


class Down(nn.Module):
    """A causal convolution with a stride: (B, in, n) -> (B, out, n / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.before = stride + 1  # the last tap is at the last sample of the frame
        self.convolution = nn.Conv1d(inputs, outputs, 2 * stride + 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.convolution(F.pad(inputs, (self.before, 0)))


class Up(nn.Module):
    """A causal convolution and `stride` outputs from each of its steps: (B, in, F) -> (B, out, F · stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv1d(inputs, outputs * stride, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = self.convolution(F.pad(inputs, (2, 0)))  # (B, out · stride, F)
        return steps.unflatten(1, (-1, self.stride)).transpose(2, 3).flatten(2)


class Quantiser(nn.Module):
    """Q codebooks, each for what those before it have left."""

    def __init__(self, config: Any):
        super().__init__()
        self.codebooks = nn.Parameter(torch.empty(config.quantizers, config.levels, config.code_dim))

    def ids(self, codes: Tensor) -> Tensor:
        """(B, F, E) -> the nearest codes' ids (B, F, Q)."""
        ids = []
        for codebook in self.codebooks:
            ids.append(torch.cdist(codes, codebook.expand(len(codes), -1, -1)).argmin(-1))
            codes = codes - codebook[ids[-1]]
        return torch.stack(ids, dim=-1)

    def codes(self, ids: Tensor) -> Tensor:
        """(B, F, Q) -> each stage's codes (Q, B, F, E)."""
        return torch.stack([codebook[ids[..., stage]] for stage, codebook in enumerate(self.codebooks)])


class RVQ(PreTrainedModel):
    """Encoder -> residual quantiser -> decoder, for each channel on its own."""

    config_class = RVQConfig
    main_input_name = "signal"
    supports_gradient_checkpointing = False

    def __init__(self, config: RVQConfig):
        super().__init__(config)
        width, strides = config.width, config.strides
        widths = [1, *[width] * len(strides)]
        encoder: list[nn.Module] = []
        for inputs, stride in zip(widths, strides, strict=False):
            encoder += [Down(inputs, width, stride), nn.GELU()]
        self.encoder = nn.Sequential(*encoder, nn.Conv1d(width, config.code_dim, 1))
        self.quantiser = Quantiser(config)
        decoder: list[nn.Module] = []
        for stride in reversed(strides):
            decoder += [Up(width, width, stride), nn.GELU()]
        self.decoder = nn.Sequential(nn.Conv1d(config.code_dim, width, 1), *decoder, nn.Conv1d(width, 1, 1))
        self.loss_weights = {"commitment": config.commitment}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Quantiser):
            for stage, codebook in enumerate(module.codebooks):
                init.normal_(codebook, std=0.5 * 0.5**stage)  # what is left shrinks from stage to stage
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, signal: Tensor, labels: Tensor | None = None, **context: Any) -> dict[str, Any]:
        """What the codes of a signal say of it, and the loss.

        Args:
            signal: (B, C, n) values, n a multiple of `hop`.
            labels, context: other batch keys, which this network does not use: its target is the signal.

        Returns:
            {"loss", "losses", "prediction": (B, C, n)}; the losses are means over samples: of the squared error, of the
            codebooks' distance from the encoder, and of the encoder's from the codebooks.
        """
        rows = signal.flatten(0, 1).to(self.dtype)
        encoded = self._encoded(rows)
        codes = self.quantiser.codes(self.quantiser.ids(encoded.detach()))
        # Each stage learns what was left for it; no gradient goes through the choice of the stages before.
        left = encoded.detach() - (codes.cumsum(0) - codes).detach()
        code = codes.sum(0)
        through = encoded + (code - encoded).detach()
        predicted = self._decoded(through)
        losses = {
            "reconstruction": F.mse_loss(predicted, rows),
            "codebook": F.mse_loss(codes, left),
            "commitment": F.mse_loss(encoded, code.detach()),
        }
        loss = losses["reconstruction"] + losses["codebook"] + self.config.commitment * losses["commitment"]
        return {"loss": loss, "losses": losses, "prediction": predicted.view(signal.shape)}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values of the signals, for each term."""
        items = torch.tensor(batch["signal"].numel())
        return {"reconstruction": items, "codebook": items, "commitment": items}

    @torch.no_grad()
    def encode(self, signal: Tensor) -> Tensor:
        """(B, n) values -> (B, n / hop, Q) ids."""
        return self.quantiser.ids(self._encoded(signal.to(self.dtype)))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """(B, F, Q) ids -> (B, F · hop) values."""
        return self._decoded(self.quantiser.codes(ids).sum(0))

    def _encoded(self, rows: Tensor) -> Tensor:
        """(B, n) -> (B, F, E)"""
        return self.encoder(rows[:, None]).transpose(1, 2)

    def _decoded(self, codes: Tensor) -> Tensor:
        """(B, F, E) -> (B, n)"""
        return self.decoder(codes.transpose(1, 2))[:, 0]
