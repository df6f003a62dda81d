"""The network.

Shapes: B batch, C channels, T time steps, N = B·C sequences, R residual channels, S skip channels, V ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from models.losses.values import ValueLoss
from models.pretrained import pretrained_config
from models.signal_gpt.generation import next_ids
from models.wavenet.config import Config

NO_LOSS = -100

WaveNetConfig = pretrained_config(Config, "wavenet", "WaveNetConfig", __name__)


class CausalConv1d(nn.Conv1d):
    """A convolution that reads no later time step: (N, R, T) -> (N, out, T)."""

    def forward(self, inputs: Tensor) -> Tensor:
        before = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(inputs, (before, 0)))


class GatedLayer(nn.Module):
    """tanh(filter) · sigmoid(gate) of one dilated convolution, conditioned on the channel (equation 3)."""

    def __init__(self, config: Any, dilation: int):
        super().__init__()
        width = config.residual_channels
        self.dropout = config.dropout
        self.dilated = CausalConv1d(width, 2 * width, config.kernel_size, dilation=dilation)
        self.condition = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Conv1d(width, width + config.skip_channels, 1)

    def forward(self, inputs: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        """(N, R, T), (N, R) -> the next layer's input (N, R, T) and the skip connection (N, S, T)."""
        inner = self.dilated(F.dropout(inputs, self.dropout, self.training)) + self.condition(channel)[..., None]
        value, gate = inner.chunk(2, dim=1)
        output = self.output(value.tanh() * gate.sigmoid())
        width = inputs.shape[1]
        return inputs + output[:, :width], output[:, width:]


class WaveNet(PreTrainedModel):
    """Each channel is a sequence of its own; all share the weights, and an embedding names the channel."""

    config_class = WaveNetConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False

    def __init__(self, config: WaveNetConfig):
        super().__init__(config)
        width, self.is_quantised = config.residual_channels, config.vocab_size is not None
        self.embedding = nn.Embedding(config.vocab_size, width) if self.is_quantised else nn.Linear(1, width)
        self.channel_embedding = nn.Embedding(config.channels, width)
        dilations = [2**layer for layer in range(config.layers)] * config.blocks
        self.layers = nn.ModuleList(GatedLayer(config, dilation) for dilation in dilations)
        outputs = config.vocab_size if self.is_quantised else 2
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(config.skip_channels, config.skip_channels, 1),
            nn.ReLU(),
            nn.Conv1d(config.skip_channels, outputs, 1),
        )
        self.criterion = ValueLoss(likelihood=True)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)

    @property
    def receptive_field(self) -> int:
        """Time steps that a prediction depends on."""
        return 1 + self.config.blocks * (self.config.kernel_size - 1) * (2**self.config.layers - 1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        signal: Tensor | None = None,
        labels: Tensor | None = None,
        channels: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Tensor]:
        """What follows at each place and, given it, the loss.

        Args:
            input_ids: (B, C, T) ids, of a quantised network.
            signal: (B, C, T) values, of any other.
            labels: (B, C, T) the next ids, -100: no loss; or the next values, NaN: unknown.
            channels: (B, C) indices of the channels; None: all in their order.
            context: other batch keys, which this network does not use.

        Returns:
            {"logits": (B, C, T, V)}, or {"prediction", "log_variance"}, each (B, C, T); with labels also {"loss"}.

        Raises:
            ValueError: the batch is not of the kind that the network was built for.
        """
        inputs = input_ids if self.is_quantised else signal
        if inputs is None or inputs.dim() != 3:
            wanted = "input_ids" if self.is_quantised else "signal"
            raise ValueError(f"this wavenet reads `{wanted}` (batch, channels, time); choose data with that target")
        if channels is None:
            channels = torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2])
        rows = inputs.flatten(0, 1)
        hidden = self.embedding(rows if self.is_quantised else rows[..., None].to(self.dtype)).transpose(1, 2)
        channel, skips = self.channel_embedding(channels.flatten()), 0
        for layer in self.layers:
            hidden, skip = layer(hidden, channel)
            skips = skips + skip
        scores = self.head(skips).transpose(1, 2).unflatten(0, inputs.shape[:2])  # (B, C, T, V or 2)
        if self.is_quantised:
            outputs = {"logits": scores}
            if labels is not None:
                outputs["loss"] = F.cross_entropy(scores.flatten(0, -2).float(), labels.flatten())
            return outputs
        # The mean is a change of the last value: at first the network predicts that nothing changes.
        outputs = {"prediction": inputs + scores[..., 0], "log_variance": scores[..., 1].clamp(-12, 12)}
        return outputs if labels is None else {**self.criterion(outputs, {"labels": labels}), **outputs}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Places that carry loss."""
        return {"loss": (batch["labels"] != NO_LOSS).sum()} if self.is_quantised else self.criterion.loss_items(batch)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor,
        max_new_tokens: int,
        channels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        **of_ids: Any,
    ) -> Tensor:
        """The prompt (B, C, T), ids or values, and `max_new_tokens` time steps after it.

        Args:
            temperature: of ids as in `models.signal_gpt`; of values it scales the standard deviation.
            of_ids: `top_k` and `top_p`, as in `models.signal_gpt`; values have none.
        """
        was_training = self.training
        self.eval()
        try:
            for _ in range(max_new_tokens):
                seen = {"input_ids" if self.is_quantised else "signal": inputs[..., -self.receptive_field :]}
                outputs = {name: value[:, :, -1] for name, value in self(**seen, channels=channels).items()}
                if self.is_quantised:
                    drawn = next_ids(outputs["logits"], temperature, generator=generator, **of_ids)
                else:
                    noise = torch.randn(outputs["prediction"].shape, generator=generator).to(inputs)
                    drawn = outputs["prediction"] + temperature * (outputs["log_variance"] / 2).exp() * noise
                inputs = torch.cat((inputs, drawn[..., None]), dim=-1)
            return inputs
        finally:
            self.train(was_training)
