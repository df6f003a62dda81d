"""The tracking transformer.

Shapes: B clips, N instances of a clip (all its frames), A anchors, C channels, H × W pixels of a crop, D width,
L decoder layers whose output is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.layers import Attention
from models.losses.tracks import AssociationLoss, clip_frames
from models.pretrained import pretrained_config
from models.tracker.config import Config
from models.tracker.embeddings import PairGeometry, SpatioTemporalEmbedding, outline, projection
from models.tracker.encoders import build_encoder, load_weights

TrackerConfig = pretrained_config(Config, "tracker", "TrackerConfig", __name__)
AT_ONCE = 256  # crops that are encoded together outside of training
MASKED = -1e9  # finite: a clip without instances then has no NaN


def build_network(config: Config, cache_dir: str | None) -> Tracker:
    """See `models.tracker.build`."""
    network = Tracker(TrackerConfig(**asdict(config)))
    if config.encoder_cfg.pretrained:
        load_weights(network.visual, config.encoder_cfg, cache_dir)
    return network


class Tracker(PreTrainedModel):
    """Crops and boxes of a clip -> a logit for each pair of its instances."""

    config_class = TrackerConfig
    main_input_name = "crops"
    supports_gradient_checkpointing = False

    def __init__(self, config: TrackerConfig):
        super().__init__(config)
        settings = Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
        dim = settings.d_model
        self.visual, features = build_encoder(settings.encoder_cfg, settings.channels, settings.crop_size)
        self.to_tokens = nn.Linear(features, dim)
        self.embedding = SpatioTemporalEmbedding(settings.embedding_meta, dim, settings.anchors, settings.clip_length)
        self.geometry = PairGeometry(settings.nhead, settings.motion) if settings.relative_geometry else None
        self.encoder = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.num_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.num_decoder_layers))
        self.encoder_norm = nn.LayerNorm(dim) if settings.norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(dim) if settings.norm else nn.Identity()
        layers, dropout = settings.num_layers_attn_head, settings.dropout_attn_head
        self.head = nn.ModuleDict({name: projection(dim, layers, dropout) for name in ("query", "key")})
        self.criterion = AssociationLoss()
        self.loss_weights = self.criterion.loss_weights
        self.post_init()

    def encode(self, boxes: Tensor, mask: Tensor, crops: Tensor | None = None) -> Tensor:
        """Visual features of a clip's instances, unit vectors, (B, N, D); zero where `mask` is false.

        They do not depend on the other instances, so that inference computes them once for each detection.

        Args:
            boxes: (B, N, A, 4).
            mask: (B, N), true for instances.
            crops: (B, N, C, H, W) uint8, or floating point from 0 to 1.
        """
        tokens = boxes.new_zeros(*mask.shape, self.config.d_model, dtype=self.dtype)
        valid = mask.nonzero()  # (M, 2); padding must not enter batch statistics
        parts = valid.split(len(valid) if self.training else AT_ONCE) if len(valid) else ()
        vectors = []
        for row, column in (part.unbind(1) for part in parts):
            pixels = None
            if crops is not None:
                pixels = crops[row, column].to(self.dtype) / (1 if crops.is_floating_point() else 255)
            corners = outline(boxes[row, column])
            vectors.append(self.visual(pixels, (corners[:, 2:] - corners[:, :2]).to(self.dtype)))
        if vectors:
            tokens[mask] = F.normalize(self.to_tokens(torch.cat(vectors)), dim=-1).to(tokens.dtype)
        return tokens

    def forward(
        self,
        boxes: Tensor,
        times: Tensor,
        mask: Tensor,
        crops: Tensor | None = None,
        identities: Tensor | None = None,
        features: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Associate the instances of each clip and, given identities, compute the loss.

        Args:
            boxes: (B, N, A, 4) y1x1y2x2 in shares of the image.
            times: (B, N) numbers of frames.
            mask: (B, N), true for instances, false for padding.
            crops: see `encode`.
            identities: (B, N), equal for one animal in a clip, -1 if unknown.
            features: (B, N, D), what `encode` returned before, in place of crops.
            context: further entries of a batch.

        Returns:
            {"association": (L, B, N, N)}: row i, column j, the logit that instance j is the animal of i in j's frame,
            against a logit of 0 that the animal is not there. With identities also the loss; with
            `return_embedding` "embedding" (B, N, D).
        """
        tokens = self.encode(boxes, mask, crops) if features is None else features
        frames = clip_frames(times, mask)
        boxes = boxes.to(self.dtype)
        embedding = self.embedding(boxes, frames).to(self.dtype)
        attention = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, MASKED)[:, None, None]
        per_head, bias = self.geometry(boxes, frames, mask) if self.geometry is not None else (0.0, 0.0)
        attention = attention + per_head
        memory = tokens
        for layer in self.encoder:
            memory = layer(memory, embedding, attention)
        memory = self.encoder_norm(memory)
        keys = self.head["key"](memory).transpose(1, 2)
        queries, logits = tokens, []
        for layer in self.decoder:
            queries = layer(queries, memory, embedding, attention)
            logits.append(self.head["query"](self.decoder_norm(queries)) @ keys + bias)
        kept = logits if self.config.return_intermediate_dec else logits[-1:]
        outputs = {"association": torch.stack(kept).float()}
        if self.config.return_embedding:
            outputs["embedding"] = embedding
        if identities is None:
            return outputs
        return {**self.criterion(outputs, {"identities": identities, "times": times, "mask": mask}), **outputs}

    def loss_items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Clips."""
        return self.criterion.loss_items(batch)


class MaskedAttention(Attention):
    """Attention with an additive mask, such as a bias of each pair of tokens."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """query, key, value (B, N, D), mask broadcastable to (B, heads, N, N) -> (B, N, D)."""
        heads = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        lowest = torch.finfo(heads[0].dtype).min  # finite in half precision too
        return self.output(self.attend(*heads, mask.to(heads[0].dtype).clamp(min=lowest)))


class GatedFeedForward(nn.Module):
    """D -> D -> D with the activation between; `glu` halves a layer of twice the width."""

    def __init__(self, dim: int, activation: str, dropout: float):
        super().__init__()
        self.inner = nn.Linear(dim, 2 * dim if activation == "glu" else dim)
        self.outer = nn.Linear(dim, dim)
        self.activation = getattr(F, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.outer(self.dropout(self.activation(self.inner(tokens))))


class AddNorm(nn.Module):
    """The residual connection, with a layer norm after the sum if `norm`."""

    def __init__(self, config: Config):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model) if config.norm else nn.Identity()

    def forward(self, tokens: Tensor, branch: Tensor) -> Tensor:
        return self.norm(tokens + self.dropout(branch))


class EncoderLayer(nn.Module):
    """Tokens += embedding, self-attention with values that include it, feed-forward."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = MaskedAttention(config.d_model, config.nhead, config.dropout)
        self.feedforward = GatedFeedForward(config.d_model, config.activation, config.dropout)
        self.after_attention, self.after_feedforward = AddNorm(config), AddNorm(config)

    def forward(self, tokens: Tensor, embedding: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens + embedding
        tokens = self.after_attention(tokens, self.attention(tokens, tokens, tokens, mask))
        return self.after_feedforward(tokens, self.feedforward(tokens))


class DecoderLayer(nn.Module):
    """Queries and memory += embedding, self-attention if asked for, attention to the memory, feed-forward."""

    def __init__(self, config: Config):
        super().__init__()
        sizes = config.d_model, config.nhead, config.dropout
        self.self_attention = MaskedAttention(*sizes) if config.decoder_self_attn else None
        self.cross_attention = MaskedAttention(*sizes)
        self.feedforward = GatedFeedForward(config.d_model, config.activation, config.dropout)
        self.after_self = AddNorm(config) if config.decoder_self_attn else None
        self.after_cross, self.after_feedforward = AddNorm(config), AddNorm(config)

    def forward(self, queries: Tensor, memory: Tensor, embedding: Tensor, mask: Tensor) -> Tensor:
        queries, memory = queries + embedding, memory + embedding
        if self.self_attention is not None:
            queries = self.after_self(queries, self.self_attention(queries, queries, queries, mask))
        queries = self.after_cross(queries, self.cross_attention(queries, memory, memory, mask))
        return self.after_feedforward(queries, self.feedforward(queries))
