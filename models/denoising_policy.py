"""What diffusion, flow and regression policies share: the condition, the network, and when noise is drawn.

Shapes: B batch, C chunk size, A action dim, K images, D condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from models.chunk_networks import NETWORKS
from models.chunking import ChunkPolicy, masked_mean
from models.observation import ObservationEncoder

EVALUATION_LEVELS = 8  # noise levels over which the loss of an evaluation is a mean


class NoisyChunks:
    """What noise a network is trained on, and from what noise a chunk is sampled.

    A subclass defines what the network is trained to predict, and how a chunk follows from it. In training each sample
    has noise and a level of its own. In evaluation mode all samples share fixed ones: neither a loss nor an action
    depends on the batch that a sample is in. A condition is whatever the network takes for what was observed.
    """

    levels = EVALUATION_LEVELS

    def errors(self, actions: Tensor, noise: Tensor, level: Tensor, condition: Any) -> Tensor:
        """Errors (B, C, A) of the network for actions and noise (B, C, A), level (B,) in [0, 1)."""
        raise NotImplementedError

    def sample(self, noise: Tensor, condition: Any) -> Tensor:
        """A chunk (B, C, A) from noise (B, C, A)."""
        raise NotImplementedError

    def action_errors(self, actions: Tensor, condition: Any) -> Tensor:
        """Errors (B, C, A) at one random level of noise for each sample; in evaluation mode at fixed ones."""
        if self.training:
            return self.errors(actions, *self.draw(actions), condition)
        return self.fixed_errors(actions, condition)

    def draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B, C, A) and its level (B,) for each sample."""
        return torch.randn_like(actions), torch.rand(len(actions), device=actions.device)

    def fixed_errors(self, actions: Tensor, condition: Any) -> Tensor:
        """Errors (B, C, A) averaged over evenly spaced levels, each with fixed noise."""
        generator, total = torch.Generator().manual_seed(0), 0.0
        for number in range(self.levels):
            level = actions.new_full((len(actions),), (number + 0.5) / self.levels, dtype=torch.float32)
            total = total + self.errors(actions, self.shared_noise(generator, actions), level, condition)
        return total / self.levels

    def sample_chunks(self, like: Tensor, condition: Any, generator: torch.Generator | None = None) -> Tensor:
        """Chunks (B, C, A) of the shape and type of `like`, from noise that all samples share."""
        return self.sample(self.shared_noise(generator or torch.Generator().manual_seed(0), like), condition)

    def shared_noise(self, generator: torch.Generator, like: Tensor) -> Tensor:
        """Normal noise of the shape of `like` (B, C, A), equal for all samples."""
        return torch.randn(1, *like.shape[1:], generator=generator).to(like).expand_as(like)


class DenoisingPolicy(NoisyChunks, ChunkPolicy):
    """A policy of `NoisyChunks` whose condition is a vector (B, D) computed from the observation."""

    supports_gradient_checkpointing = False

    def __init__(self, config):
        super().__init__(config)
        self.observation = ObservationEncoder(config)
        self.network = NETWORKS[config.network](config, self.observation.width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)

    def forward(
        self,
        state: Tensor,
        actions: Tensor | None = None,
        is_pad: Tensor | None = None,
        images: Tensor | None = None,
        words: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Sample a chunk or compute the loss of a demonstrated one; arguments as `models.act.network.ACT.forward`.

        Returns:
            Without actions {"actions": (B, C, A)}, in training {"loss", "losses"}, in evaluation mode both.
        """
        self.check_images(images)
        self.check_words(words)
        condition = self.observation(state.to(self.dtype), images, words)
        if actions is None:
            return {"actions": self.sample_chunks(self.empty_chunks(condition), condition)}
        actions = actions.to(self.dtype)
        loss = masked_mean(self.action_errors(actions, condition), is_pad)
        output = {"loss": loss, "losses": {"action": loss}}
        return (
            output
            if self.training
            else {**output, "actions": self.sample_chunks(self.empty_chunks(condition), condition)}
        )

    def reset(self) -> None:
        super().reset()
        self._generator = torch.Generator().manual_seed(0)

    def predict_chunk(self, inputs: dict[str, Tensor]) -> Tensor:
        """The next chunk (1, C, A), from noise of its own; every episode has the same sequence of noise."""
        images, words = inputs.get("images"), inputs.get("words")
        self.check_images(images)
        self.check_words(words)
        condition = self.observation(inputs["state"].to(self.dtype), images, words)
        return self.sample_chunks(self.empty_chunks(condition), condition, self._generator)

    def empty_chunks(self, condition: Tensor) -> Tensor:
        """An uninitialised (B, C, A)."""
        return condition.new_empty(len(condition), self.config.chunk_size, self.config.action_dim)
