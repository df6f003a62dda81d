"""The network of ACT (Zhao et al. 2023, arXiv:2304.13705; appendix C and figure 11).

Training: a CVAE encoder reads the demonstrated chunk into a latent z; a transformer encoder reads z, the
state and the image features; a decoder turns one learned query per step into an action. Acting: z = 0.

Shapes: B batch, C chunk size, A action dim, K images, F their channels, h × w their cells, D hidden dim,
Z latent dim, S tokens that the encoder reads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from models.act.config import Config
from models.backbone import ImageBackbone
from models.chunking import ChunkPolicy, masked_mean
from models.layers import DecoderLayer, Encoder, grid_positions, sequence_positions
from models.pretrained import pretrained_config

ACTConfig = pretrained_config(Config, "act", "ACTConfig", __name__)


def layer_sizes(config: ACTConfig) -> tuple[int, int, int, float, bool]:
    """What every attention layer of the network is made with."""
    return config.hidden_dim, config.num_heads, config.feedforward_dim, config.dropout, config.pre_norm


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) ‖ N(0, 1)) of (B, Z), summed over latent dims, averaged over the batch."""
    mean, log_variance = mean.float(), log_variance.float()  # e^x in bfloat16 loses the small differences
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()


class CVAEEncoder(nn.Module):
    """Reads [CLS, state, demonstrated actions]; the CLS output gives the posterior of z."""

    def __init__(self, config: ACTConfig):
        super().__init__()
        dim = config.hidden_dim
        self.cls = nn.Embedding(1, dim)
        self.state_projection = nn.Linear(config.state_dim - config.env_state_dim, dim)
        self.action_projection = nn.Linear(config.action_dim, dim)
        self.encoder = Encoder(config.cvae_layers, *layer_sizes(config))
        self.posterior = nn.Linear(dim, 2 * config.latent_dim)
        # As the prior: from random weights a KL of some tens would drown the first updates.
        self.posterior.starts_at_zero = True

    def forward(self, state: Tensor, actions: Tensor, is_pad: Tensor | None) -> tuple[Tensor, Tensor]:
        """state (B, state dim), actions (B, C, A), is_pad (B, C) -> mean and log variance, (B, Z) each."""
        state_token = self.state_projection(state)[:, None]
        cls_token = self.cls.weight.to(state_token.dtype).expand_as(state_token)
        tokens = torch.cat((cls_token, state_token, self.action_projection(actions)), dim=1)  # (B, 2 + C, D)
        positions = sequence_positions(tokens.shape[1], tokens.shape[2], tokens.device)
        if is_pad is not None:
            is_pad = F.pad(is_pad, (2, 0), value=False)  # CLS and state are never padding
        cls_output = self.encoder(tokens, positions.to(self.cls.weight.dtype), is_pad, num_outputs=1)
        mean, log_variance = self.posterior(cls_output[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


class Decoder(nn.Module):
    """Decoder layers and the layer norm that DETR puts after them."""

    def __init__(self, config: ACTConfig):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(*layer_sizes(config)) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = config.dropout

    def forward(
        self, memory: Tensor, queries: Tensor, memory_positions: Tensor, memory_is_pad: Tensor | None = None
    ) -> Tensor:
        """memory (B, S, D), queries (C, D), memory_positions (S, D), memory_is_pad (B, S) -> (B, C, D)."""
        # Targets start at zero: which step a query asks for is in its position alone, as in DETR. Until they
        # meet the memory, only dropout tells samples apart; without it one row stands for the batch.
        rows = memory.shape[0] if self.training and self.dropout else 1
        targets = memory.new_zeros(rows, *queries.shape)
        for layer in self.layers:
            targets = layer(targets, memory, queries, memory_positions, memory_is_pad)
        return self.norm(targets)


class ACT(ChunkPolicy):
    """The action chunking transformer, wholly in normalised space."""

    config_class = ACTConfig

    def __init__(self, config: ACTConfig):
        super().__init__(config)
        dim = config.hidden_dim
        if config.num_images:
            self.backbone = ImageBackbone(config)
            self.image_projection = nn.Linear(self.backbone.out_channels, dim)
        if config.num_images > 1:
            # Without it, cameras and frames of history could only be distinguished by their content.
            self.view_positions = nn.Embedding(config.num_images, dim)
            self.view_positions.starts_at_zero = True  # the paper: all cameras share one camera's positions
        if config.use_cvae:
            self.cvae_encoder = CVAEEncoder(config)
        self.latent_projection = nn.Linear(config.latent_dim, dim)
        self.state_projection = nn.Linear(config.state_dim - config.env_state_dim, dim)
        if config.env_state_dim:
            self.env_state_projection = nn.Linear(config.env_state_dim, dim)
        if config.num_words:
            self.word_projection = nn.Linear(config.num_words, dim)
        # Of the latent's and the state's token, and the environment's and the instruction's if there are such.
        self.token_positions = nn.Embedding(2 + bool(config.env_state_dim) + bool(config.num_words), dim)
        self.encoder = Encoder(config.encoder_layers, *layer_sizes(config))
        self.queries = nn.Embedding(config.chunk_size, dim)
        self.decoder = Decoder(config)
        self.head = nn.Linear(dim, config.action_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            if isinstance(module, nn.Linear):
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)

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
        """Predict a chunk and, given the demonstrated one, the losses.

        Args:
            state: (B, state dim), normalised.
            actions: (B, C, A), normalised; its values never reach the prediction in evaluation mode.
            is_pad: (B, C) bool, true for steps after the episode's end.
            images: (B, K, 3, H, W) uint8.
            words: (B, V), 1 for each word of the instruction, else 0.
            image_mask: (B, K) bool, false for images that do not exist; no token attends to theirs.
            context: other batch keys, which this network does not use.

        Returns:
            Without actions {"actions": (B, C, A)}. In training {"loss", "losses": {"action": L1, "kl": KL}}.
            In evaluation mode with actions all of these for z = 0, without KL: the policy's error as it acts.
        """
        self.check_images(images)
        self.check_words(words)
        state = state.to(self.dtype)  # observations are float32, also for weights of another type
        latent, losses = state.new_zeros(state.shape[0], self.config.latent_dim), {}
        if actions is not None and self.training and self.config.use_cvae:
            of_robot = state[:, : self.config.state_dim - self.config.env_state_dim]
            mean, log_variance = self.cvae_encoder(of_robot, actions.to(state.dtype), is_pad)
            latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            losses["kl"] = gaussian_kl(mean, log_variance)
        predicted = self.predict(latent, state, images, words, image_mask)
        if actions is None:
            return {"actions": predicted}
        losses = {"action": masked_mean((predicted - actions).abs(), is_pad), **losses}
        loss = losses["action"] + self.config.kl_weight * losses.get("kl", 0.0)
        output = {"loss": loss, "losses": losses}
        return output if self.training else {**output, "actions": predicted}

    def loss_items(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The KL divergence is a mean over samples."""
        return {**super().loss_items(batch), "kl": len(batch["actions"])}

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"kl": self.config.kl_weight}

    def predict(
        self,
        latent: Tensor,
        state: Tensor,
        images: Tensor | None,
        words: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """latent (B, Z), state (B, state dim), images (B, K, 3, H, W), words (B, V), mask (B, K) -> (B, C, A)."""
        robot, environment = state.tensor_split([state.shape[1] - self.config.env_state_dim], dim=1)
        tokens = [self.latent_projection(latent), self.state_projection(robot)]
        if self.config.env_state_dim:
            tokens.append(self.env_state_projection(environment))
        if words is not None:
            tokens.append(self.word_projection(words.to(state.dtype)))
        tokens, positions, is_pad = torch.stack(tokens, dim=1), self.token_positions.weight, None
        if images is not None:
            image_tokens, image_positions = self.embed_images(images, image_mask)
            if image_mask is not None:
                cells = image_tokens.shape[1] // images.shape[1]
                is_pad = F.pad(~image_mask.repeat_interleave(cells, dim=1), (tokens.shape[1], 0), value=False)
            tokens = torch.cat((tokens, image_tokens.to(tokens.dtype)), dim=1)
            positions = torch.cat((positions, image_positions))
        memory = self.encoder(tokens, positions, is_pad)  # (B, S, D)
        return self.head(self.decoder(memory, self.queries.weight, positions, is_pad))

    def embed_images(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """images (B, K, 3, H, W), mask (B, K) -> tokens (B, K·h·w, D) and their positions (K·h·w, D)."""
        features = self.backbone(images, mask)  # (B, K, F, h, w)
        num_images, (height, width) = features.shape[1], features.shape[-2:]
        tokens = self.image_projection(features.flatten(3).transpose(2, 3)).flatten(1, 2)
        grid = grid_positions(height, width, self.config.hidden_dim, images.device)
        positions = grid.to(self.token_positions.weight.dtype).expand(num_images, -1, -1)  # (K, h·w, D)
        if num_images > 1:
            positions = positions + self.view_positions.weight[:, None]
        return tokens, positions.flatten(0, 1)
