"""A multi-layer perceptron that predicts a chunk of actions.

Shapes: B batch, C chunk size, A action dim, K images, F channels of the image features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from models.backbone import ImageBackbone
from models.chunking import ChunkPolicy, masked_mean
from models.mlp.config import Config
from models.pretrained import pretrained_config

MLPConfig = pretrained_config(Config, "mlp", "MLPConfig", __name__)


class MLP(ChunkPolicy):
    """State and, if there are images, their average-pooled features -> hidden layers -> chunk."""

    config_class = MLPConfig
    supports_gradient_checkpointing = False

    def __init__(self, config: MLPConfig):
        super().__init__(config)
        width = config.state_dim + (config.num_words or 0)
        if config.num_images:
            self.backbone = ImageBackbone(config)
            width += config.num_images * self.backbone.out_channels
        layers: list[nn.Module] = []
        for _ in range(config.hidden_layers):
            layers += [nn.Linear(width, config.hidden_dim), nn.ReLU(), nn.Dropout(config.dropout)]
            width = config.hidden_dim
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, config.chunk_size * config.action_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)

    def forward(
        self,
        state: Tensor,
        actions: Tensor | None = None,
        is_pad: Tensor | None = None,
        images: Tensor | None = None,
        words: Tensor | None = None,
        image_mask: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Arguments as `models.act.network.ACT.forward`.

        Returns:
            Without actions {"actions": (B, C, A)}; with them {"loss", "losses": {"action"}}, and in
            evaluation mode the prediction too.
        """
        self.check_images(images)
        self.check_words(words)
        if image_mask is not None:
            raise ValueError(
                "images are missing, and mlp has no mask for them; use model: act, diffusion, flow or regression, or "
                "dataset.missing_cameras: error"
            )
        state = state.to(self.dtype)
        if words is not None:
            state = torch.cat((state, words.to(state.dtype)), dim=-1)
        predicted = self.predict(state, images)
        if actions is None:
            return {"actions": predicted}
        difference = predicted.float() - actions.float()
        loss = masked_mean(difference.abs() if self.config.loss == "l1" else difference.square(), is_pad)
        output = {"loss": loss, "losses": {"action": loss}}
        return output if self.training else {**output, "actions": predicted}

    def predict(self, state: Tensor, images: Tensor | None) -> Tensor:
        """state (B, state dim), images (B, K, 3, H, W) -> (B, C, A)."""
        features = state
        if images is not None:
            pooled = self.backbone(images).mean(dim=(-2, -1)).flatten(1)  # (B, K·F)
            features = torch.cat((state.to(pooled.dtype), pooled), dim=-1)
        chunk = self.head(self.trunk(features))
        return chunk.unflatten(-1, (self.config.chunk_size, self.config.action_dim))
