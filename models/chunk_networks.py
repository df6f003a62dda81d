"""Networks from a chunk, a time and a condition to a chunk: what diffusion, flow and regression policies train.

Shapes: B batch, C chunk size, A action dim, D condition, T time encoding, W channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.denoising import DenoisingConfig
from models.layers import DecoderLayer, sequence_positions, sinusoids


def halved_sinusoids(time: Tensor, dim: int) -> Tensor:
    """time (B,) -> (B, dim): sines, then cosines, of angles from time to time / 10000, as Diffusion Policy's code."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(10000) / (half - 1)))
    angles = time.float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TimeEncoder(nn.Sequential):
    """A time, in steps of a diffusion process or from 0 to 1000, as (B, T)."""

    def __init__(self, config: DenoisingConfig):
        dim = config.time_dim
        super().__init__(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
        self.dim = dim
        self.encode = {"alternating": sinusoids, "halves": halved_sinusoids}[config.time_encoding]

    def forward(self, time: Tensor) -> Tensor:
        """time (B,) -> (B, T)."""
        return super().forward(self.encode(time, self.dim).to(self[0].weight.dtype))


class ConvBlock(nn.Sequential):
    """Convolution along the chunk, group norm, Mish; (B, W, C) -> (B, W', C)."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, groups: int):
        super().__init__(
            nn.Conv1d(channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(groups, out_channels),
            nn.Mish(),
        )


class ModulatedBlock(nn.Module):
    """Two convolutions with a residual connection; the condition scales and shifts the channels between them (FiLM).

    Without `film_scale` it only shifts them.
    """

    def __init__(self, channels: int, out_channels: int, condition_dim: int, config: DenoisingConfig):
        super().__init__()
        shape = config.kernel_size, config.group_norm_groups
        self.first = ConvBlock(channels, out_channels, *shape)
        self.film_scale = config.film_scale
        width = 2 * out_channels if config.film_scale else out_channels
        self.modulation = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, width))
        self.second = ConvBlock(out_channels, out_channels, *shape)
        self.skip = nn.Conv1d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, chunk: Tensor, condition: Tensor) -> Tensor:
        """chunk (B, W, C), condition (B, D) -> (B, W', C)."""
        features, modulation = self.first(chunk), self.modulation(condition)[..., None]
        if self.film_scale:
            scale, modulation = modulation.chunk(2, dim=1)
            features = scale * features
        return self.second(features + modulation) + self.skip(chunk)


class Stage(nn.Module):
    """Two modulated blocks and a change of resolution."""

    def __init__(
        self, channels: int, out_channels: int, condition_dim: int, config: DenoisingConfig, resize: nn.Module
    ):
        super().__init__()
        self.first = ModulatedBlock(channels, out_channels, condition_dim, config)
        self.second = ModulatedBlock(out_channels, out_channels, condition_dim, config)
        self.resize = resize

    def forward(self, chunk: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk at the next resolution, and before that change."""
        chunk = self.second(self.first(chunk, condition), condition)
        return self.resize(chunk), chunk


class UNet(nn.Module):
    """The conditional 1-D U-Net of Diffusion Policy (Chi et al. 2023, arXiv:2303.04137)."""

    def __init__(self, config: DenoisingConfig, condition_dim: int):
        super().__init__()
        widths = config.unet_channels
        condition_dim += config.time_dim
        self.time = TimeEncoder(config)
        pairs = list(zip([config.action_dim, *widths[:-1]], widths, strict=True))
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Stage(before, width, condition_dim, config, nn.Conv1d(width, width, 3, 2, 1) if i < last else nn.Identity())
            for i, (before, width) in enumerate(pairs)
        )
        self.middle = nn.ModuleList(ModulatedBlock(widths[-1], widths[-1], condition_dim, config) for _ in range(2))
        self.up = nn.ModuleList(
            Stage(2 * width, before, condition_dim, config, nn.ConvTranspose1d(before, before, 4, 2, 1))
            for before, width in reversed(pairs[1:])
        )
        self.output = nn.Sequential(
            ConvBlock(widths[0], widths[0], config.kernel_size, config.group_norm_groups),
            nn.Conv1d(widths[0], config.action_dim, 1),
        )

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """chunk (B, C, A), time (B,), condition (B, D) -> (B, C, A)."""
        condition = torch.cat((self.time(time), condition), dim=-1)
        features, skips = chunk.transpose(1, 2), []
        for stage in self.down:
            features, skip = stage(features, condition)
            skips.append(skip)
        for block in self.middle:
            features = block(features, condition)
        for stage in self.up:
            features, _ = stage(torch.cat((features, skips.pop()), dim=1), condition)
        return self.output(features).transpose(1, 2)


class Transformer(nn.Module):
    """A token for each action; the actions attend to one another and to the time and the observation.

    The variant of Diffusion Policy's appendix (arXiv:2303.04137) without its causal mask: all actions of a chunk are
    executed after it is complete.
    """

    def __init__(self, config: DenoisingConfig, condition_dim: int):
        super().__init__()
        dim = config.hidden_dim
        self.time = nn.Sequential(TimeEncoder(config), nn.Linear(config.time_dim, dim))
        self.condition = nn.Linear(condition_dim, dim)
        self.action = nn.Linear(config.action_dim, dim)
        self.memory_positions = nn.Embedding(2, dim)  # of the time's and the observation's token
        layer_sizes = dim, config.num_heads, 4 * dim, config.dropout, True
        self.layers = nn.ModuleList(DecoderLayer(*layer_sizes) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, config.action_dim)

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Arguments and result as `UNet.forward`."""
        memory = torch.stack((self.time(time), self.condition(condition)), dim=1)  # (B, 2, D)
        tokens = self.action(chunk)
        positions = sequence_positions(tokens.shape[1], tokens.shape[2], tokens.device).to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, memory, positions, self.memory_positions.weight)
        return self.output(self.norm(tokens))


class Perceptron(nn.Module):
    """Hidden layers over the flattened chunk, the time and the condition."""

    def __init__(self, config: DenoisingConfig, condition_dim: int):
        super().__init__()
        self.time = TimeEncoder(config)
        width = config.chunk_size * config.action_dim + config.time_dim + condition_dim
        layers: list[nn.Module] = []
        for _ in range(config.num_layers):
            layers += [nn.Linear(width, config.hidden_dim), nn.SiLU(), nn.Dropout(config.dropout)]
            width = config.hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, config.chunk_size * config.action_dim))

    def forward(self, chunk: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Arguments and result as `UNet.forward`."""
        inputs = torch.cat((chunk.flatten(1), self.time(time), condition), dim=-1)
        return self.layers(inputs).unflatten(-1, chunk.shape[1:])


NETWORKS = {"unet": UNet, "transformer": Transformer, "mlp": Perceptron}
