"""A vision-language-action policy: what a vision-language model has read becomes a chunk of actions.

The model reads images and prompt, then the state, then the text that is to be predicted; each part attends to those
before it, and the text and the actions of a SmolVLA only to what is before them. As no part attends to a later one, the
keys and values of a part are computed once, for training as for each step of sampling.

Shapes: B batch, K images, L prompt tokens, T target tokens, C chunk size, A action dim, D width, Z state dim (padded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from models.chunking import ChunkPolicy, masked_mean
from models.pretrained import pretrained_config
from models.vla.backbone import Backbone
from models.vla.config import Config
from models.vla.context import Context
from models.vla.heads import HEADS, NEEDS_HIDDEN

VLAConfig = pretrained_config(Config, "vla", "VLAConfig", __name__)


class VLA(ChunkPolicy):
    """A vision-language model with a head for actions.

    Args:
        config: with the whole configuration of the vision-language model as `config`.
        vlm: that model, if it is not to be built with random weights.
    """

    config_class = VLAConfig
    _supports_sdpa = True

    def __init__(self, config: VLAConfig, vlm: PreTrainedModel | None = None):
        super().__init__(config)
        predicts_tokens = self.writes or config.head == "tokens"
        self.backbone = Backbone(config, vlm, predicts_tokens, config.head in NEEDS_HIDDEN)
        if config.state_as == "prefix":
            self.state_proj = nn.Linear(config.max_state_dim or config.state_dim, self.backbone.width)
        self.action_head = HEADS[config.head](config, self.backbone)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.RMSNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)

    @property
    def writes(self) -> bool:
        """Whether the policy predicts a text before its actions."""
        return bool(self.config.target_tokens)

    def forward(
        self,
        state: Tensor,
        actions: Tensor | None = None,
        is_pad: Tensor | None = None,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        target_ids: Tensor | None = None,
        target_mask: Tensor | None = None,
        target_loss_mask: Tensor | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Sample a chunk or compute the loss of a demonstrated one.

        Args:
            state, actions: (B, state dim) and (B, C, A), normalised.
            is_pad: (B, C) bool, true for steps after the episode's end.
            images, image_mask: (B, K, 3, H, W) uint8, and (B, K) which of them exist; None: all do.
            prompt_ids, prompt_mask: (B, L) tokens of the instruction, and which of them exist.
            target_ids, target_mask, target_loss_mask: (B, T) tokens of the text that is to be predicted before acting,
                which of them exist, and which have a loss.
            context: other batch keys, which this network does not use.

        Returns:
            Without actions {"actions": (B, C, A)}, and "target_ids" (B, ·) if the policy has written one. In training
            {"loss", "losses"}. In evaluation mode all: losses for the demonstrated text, actions for the policy's own,
            and "target_predictions" (B, T), each the likeliest token after those before it.
        """
        prefix, state = self.read(state, images, image_mask, prompt_ids, prompt_mask)
        if actions is None:
            return self.act(prefix, state)
        losses, output, taught = {}, {}, prefix
        if self.writes:
            self.check_targets(target_ids)
            taught = self.backbone.append(prefix, self.backbone.embed(target_ids), target_mask)
            losses["language"], predictions = self.language_loss(prefix, taught, target_ids, target_loss_mask)
            output |= {} if predictions is None else {"target_predictions": predictions}
        condition = self.condition(taught, state)
        errors = self.action_head.action_errors(actions.to(state.dtype), condition)
        losses = {"action": masked_mean(errors, is_pad), **losses}
        loss = sum(self.loss_weights.get(term, 1.0) * value for term, value in losses.items())
        output |= {"loss": loss, "losses": losses}
        if self.training:
            return output
        acted = self.act(prefix, state) if self.writes else {"actions": self.chunks(condition, state)}
        return {**output, **acted}

    def read(
        self,
        state: Tensor,
        images: Tensor | None,
        image_mask: Tensor | None,
        prompt_ids: Tensor | None,
        prompt_mask: Tensor | None,
    ) -> tuple[Context, Tensor]:
        """Read an observation; returns the context and the state (B, Z) in the head's type, padded."""
        self.check_images(images)
        if prompt_ids is None:
            raise ValueError("a batch has no prompt_ids; the data must have instructions, and a tokenizer for them")
        config = self.config
        state = F.pad(state.to(self.head_dtype), (0, (config.max_state_dim or config.state_dim) - config.state_dim))
        context = self.backbone.read(images, image_mask, prompt_ids, prompt_mask)
        if config.state_as == "prefix":
            exists = torch.ones_like(state[:, :1], dtype=torch.bool)
            context = self.backbone.append(context, self.state_proj(state)[:, None], exists)
        return context, state

    @property
    def head_dtype(self) -> torch.dtype:
        return next(self.action_head.parameters()).dtype

    def condition(self, context: Context, state: Tensor) -> Any:
        """What the head takes of a context; computed once for a chunk."""
        return self.action_head.condition(context.detach() if self.config.detach_backbone else context, state)

    def act(self, prefix: Context, state: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Write a text if the policy was trained with one, and sample the chunk after it."""
        written = {}
        if self.writes:
            written["target_ids"], prefix = self.backbone.write(
                prefix, self.config.target_tokens, self.config.eos_token_id
            )
        return {"actions": self.chunks(self.condition(prefix, state), state, generator), **written}

    def chunks(self, condition: Any, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, A)"""
        like = state.new_empty(len(state), self.config.chunk_size, self.config.action_dim)
        return self.action_head.sample_chunks(like, condition, generator)

    def reset(self) -> None:
        super().reset()
        self.written: Tensor | None = None  # ids (1, T) of the text before the newest chunk
        self._generator = torch.Generator().manual_seed(0)

    def predict_chunk(self, inputs: dict[str, Tensor]) -> Tensor:
        """The next chunk (1, C, A), from noise of its own; every episode has the same sequence of noise."""
        names = ("images", "image_mask", "prompt_ids", "prompt_mask")
        prefix, state = self.read(inputs["state"], *(inputs.get(name) for name in names))
        acted = self.act(prefix, state, self._generator)
        self.written = acted.get("target_ids")
        return acted["actions"]

    # ---- language ----

    def check_targets(self, target_ids: Tensor | None) -> None:
        if target_ids is None:
            raise ValueError(
                "the policy was built to predict texts, the batch has none; use the data settings (use_reasoning) that "
                "the model was trained with"
            )

    def language_loss(
        self, prefix: Context, taught: Context, target_ids: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Mean cross entropy of the tokens (B, T) in loss_mask; in evaluation mode also the likeliest tokens (B, T)."""
        start = prefix.mask.shape[1]
        hidden = torch.cat((prefix.last[:, None], taught.hidden[:, start:-1]), dim=1)  # before each token
        # Logits of one sample at a time, or of the tokens that have a loss alone: a vocabulary is large.
        predictions = (
            None if self.training else torch.stack([self.backbone.logits(row).argmax(dim=-1) for row in hidden])
        )
        logits = self.backbone.logits(hidden[loss_mask]).float()
        total = F.cross_entropy(logits, target_ids[loss_mask], reduction="sum")
        return total / loss_mask.sum().clamp(min=1), predictions

    def loss_items(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The language loss is a mean over tokens."""
        items = super().loss_items(batch)
        return {**items, "language": batch["target_loss_mask"].sum()} if self.writes else items

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"language": getattr(self.config, "llm_loss_weight", 1.0)}

    # ---- what transformers and PEFT ask for ----

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return getattr(self.backbone, "lm_head", None)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Choose the attention of the vision tower; that of the language model has masks that only SDPA takes.

        Raises:
            ValueError: there is no vision tower.
        """
        vision = self.backbone.vision_tower
        if vision is None:
            raise ValueError("it has no vision tower, and its language model needs masks")
        vision.set_attn_implementation(attn_implementation)
        self.config._attn_implementation = attn_implementation
        self.notes = [*getattr(self, "notes", ()), f"{attn_implementation} in the vision tower; SDPA in the others"]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **options: Any
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)
        self.backbone.checkpoint_layers(gradient_checkpointing_func if enable else None)
