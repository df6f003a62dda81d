"""The seam to vision-language models of transformers: embeddings of images and words, and reading them.

Proved with SmolVLM, Idefics3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma, Gemma 3 and InternVL. Others are tried out
when a policy is built, and refused if they fail.
Shapes: B batch, K images, n tokens of an image, L tokens of a prompt, N tokens to read, D width, R axes of positions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from models.vla.context import Context, GrowingCache, attention_mask, joined
from models.vla.images import patches, preprocess

FAMILIES = "SmolVLM, Idefics3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma, Gemma 3, InternVL"
PROVED = ("smolvlm", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "gemma3", "internvl")
LANGUAGE_MODELS = ("language_model", "text_model")
VISION_PARTS = ("vision_model", "vision_tower", "visual", "connector", "multi_modal_projector")
# Names of a configuration's fields for the tokens around an image.
IMAGE_STARTS = ("vision_start_token_id", "boi_token_index", "boi_token_id")
IMAGE_ENDS = ("vision_end_token_id", "eoi_token_index", "eoi_token_id")


class Skipped(nn.Module):
    """Stands for a block whose output is read by nobody: it adds nothing to the residual stream."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class Backbone(nn.Module):
    """A vision-language model without its output head, or with it if it is to write texts.

    Args:
        config: of the policy, with `config` the whole configuration of the vision-language model.
        vlm: the model, if it has been built or loaded already; else it is new.
        writes: it predicts tokens.
        reads_hidden: its last hidden states are used, and not its keys and values alone.
    """

    def __init__(self, config: Any, vlm: PreTrainedModel | None, writes: bool, reads_hidden: bool):
        super().__init__()
        self.policy = config
        settings = AutoConfig.for_model(**config.config) if vlm is None else vlm.config
        self.vlm = AutoModel.from_config(settings) if vlm is None else vlm
        self.text_config: PreTrainedConfig = settings.get_text_config()
        if not config.num_images:
            for name in VISION_PARTS:
                if hasattr(self.vlm, name):
                    delattr(self.vlm, name)
        if writes and not self.is_tied:
            self.lm_head = nn.Linear(self.width, self.text_config.vocab_size, bias=False)
        if not writes and not reads_hidden:
            self.drop_output()

    @property
    def language_model(self) -> nn.Module:
        return getattr(self.vlm, language_model_name(self.vlm))

    @property
    def vision_tower(self) -> PreTrainedModel | None:
        return next((getattr(self.vlm, name) for name in VISION_PARTS[:3] if hasattr(self.vlm, name)), None)

    @property
    def width(self) -> int:
        return self.text_config.hidden_size

    @property
    def is_tied(self) -> bool:
        return bool(self.vlm.config.tie_word_embeddings)

    @property
    def has_grid_positions(self) -> bool:
        """Whether image tokens have a time, a row and a column."""
        return hasattr(self.vlm, "visual") or hasattr(self.vlm, "get_rope_index")

    def drop_output(self) -> None:
        """Remove or fix what only the last hidden states depend on: nothing reads those, so it has no gradient."""
        last, norm = self.language_model.layers[-1], self.language_model.norm
        last.mlp = Skipped()
        read = ("input_layernorm.", "self_attn.k_", "self_attn.v_")
        for name, parameter in [*last.named_parameters(), *norm.named_parameters(prefix="norm")]:
            parameter.requires_grad = name.startswith(read)

    # ---- embeddings ----

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, L) -> (B, L, D)"""
        return self.vlm.get_input_embeddings()(ids) * self.scale

    @property
    def scale(self) -> float:
        return self.width**0.5 if self.policy.scale_embeddings else 1.0

    def image_features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """pixels (N, 3, s, s), normalised -> (N, n, D), and what Qwen3-VL adds to the first layers, each (N, n, D)."""
        vlm, vision = self.vlm, self.vlm.config.vision_config
        pixels = pixels.to(vlm.dtype)
        if hasattr(vlm, "connector"):  # not by their get_image_features, which leaves images out that are all zero
            side = pixels.shape[-1] // vision.patch_size
            whole = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
            return vlm.connector(vlm.vision_model(pixel_values=pixels, patch_attention_mask=whole)[0]), []
        if hasattr(vlm, "visual"):
            side = pixels.shape[-1] // vision.patch_size
            grid = torch.tensor([[1, side, side]], device=pixels.device).expand(len(pixels), -1)
            rows = patches(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
            output = vlm.get_image_features(rows, image_grid_thw=grid)
            deep = [torch.stack(tuple(level)) for level in getattr(output, "deepstack_features", None) or ()]
        else:
            output, deep = vlm.get_image_features(pixel_values=pixels), []
        return torch.stack(tuple(output.pooler_output)), deep

    def image_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Embed images (B, K, 3, H, W) uint8 with the tokens around them.

        Returns:
            embeddings (B, K, n, D), positions (R, n + 1) of an image's tokens from its first on and of what follows it,
            and Qwen3-VL's features of its inner tokens.
        """
        config, (batch, count) = self.policy, images.shape[:2]
        pixels = preprocess(
            images.flatten(0, 1), config.image_size, config.image_resize, config.image_mean, config.image_std
        )
        features, deep = self.image_features(pixels)  # (B·K, n, D)
        places = self.inner_positions(features.shape[1]).to(features.device)  # (R, n)
        follows = places.max() + 1
        pieces, positions = [features * self.scale], [places]
        if (start := self._token(IMAGE_STARTS)) is not None:
            pieces.insert(0, self.embed(torch.full((len(features), 1), start, device=features.device)))
            positions = [places.new_zeros(len(places), 1), places + 1]
            follows = follows + 1
        if (end := self._token(IMAGE_ENDS)) is not None:
            pieces.append(self.embed(torch.full((len(features), 1), end, device=features.device)))
            positions.append(follows.expand(len(places), 1))
            follows = follows + 1
        positions.append(follows.expand(len(places), 1))
        return torch.cat(pieces, dim=1).unflatten(0, (batch, count)), torch.cat(positions, dim=1), deep

    def inner_positions(self, count: int) -> Tensor:
        """Positions (R, n) of an image's n tokens: in a row, or for Qwen's models time, row and column."""
        if not self.has_grid_positions:
            return torch.arange(count)[None]
        side = round(count**0.5)
        rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        return torch.stack((torch.zeros_like(rows), rows, columns))

    def _token(self, names: tuple[str, ...]) -> int | None:
        """The first of the configuration's fields that is a token of the vocabulary."""
        found = (getattr(self.vlm.config, name, None) for name in names)
        return next((token for token in found if token is not None and token < self.text_config.vocab_size), None)

    # ---- reading and writing ----

    def read(
        self, images: Tensor | None, image_mask: Tensor | None, prompt_ids: Tensor, prompt_mask: Tensor
    ) -> Context:
        """Read images (B, K, 3, H, W) uint8, of which image_mask (B, K) exist, and a prompt (B, L)."""
        kept = prompt_mask.any(dim=0)  # columns that are padding of every sample
        prompt_ids, prompt_mask = prompt_ids[:, kept], prompt_mask[:, kept]
        axes = 3 if self.has_grid_positions else 1
        start, extra = prompt_ids.new_zeros(axes, len(prompt_ids), 1), {}
        embeddings, masks, positions = [], [], []
        if images is not None:
            tokens, places, deep = self.image_tokens(images)  # (B, K, n, D), (R, n + 1)
            exists = torch.ones_like(images[:, :, 0, 0, 0], dtype=torch.bool) if image_mask is None else image_mask
            # An image that does not exist takes no positions: its prompt follows as if it were not there.
            ends = (exists * places[0, -1]).cumsum(dim=1)  # (B, K)
            starts = ends - exists * places[0, -1]
            positions.append((starts[None, ..., None] + places[:, None, None, :-1]).flatten(2))
            start = ends[None, :, -1:].expand(axes, -1, -1)
            embeddings.append(tokens.flatten(1, 2))
            masks.append(exists[..., None].expand(tokens.shape[:3]).flatten(1))
            extra = self.deep_features(deep, tokens, prompt_ids.shape[1])
        embeddings.append(self.embed(prompt_ids))
        masks.append(prompt_mask)
        positions.append(start + (prompt_mask.cumsum(dim=1) - 1).clamp(min=0))
        tokens, mask = torch.cat(embeddings, dim=1), torch.cat(masks, dim=1)
        follows = start[0, :, 0] + prompt_mask.sum(dim=1)
        causal = self.policy.prefix_attention == "causal"
        return self._read(None, tokens, mask, torch.cat(positions, dim=2), follows, causal, **extra)

    def deep_features(self, deep: list[Tensor], tokens: Tensor, num_words: int) -> dict[str, Any]:
        """Arguments of Qwen3-VL's language model: features (B·K, n, D) that its first layers add to image tokens."""
        if not deep:
            return {}
        inner = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)  # (B, K, n)
        inner[..., 0] = self._token(IMAGE_STARTS) is None
        inner[..., -1] = self._token(IMAGE_ENDS) is None
        words = inner.new_zeros(len(inner), num_words)
        deep = [level.flatten(0, 1) for level in deep]
        return {"visual_pos_masks": torch.cat((inner.flatten(1), words), 1), "deepstack_visual_embeds": deep}

    def append(self, context: Context, tokens: Tensor, mask: Tensor, causal: bool = True) -> Context:
        """Read tokens (B, N, D), of which mask (B, N) exist, after a context."""
        positions = context.position[:, None] + (mask.cumsum(dim=1) - 1).clamp(min=0)
        positions = positions.expand(3 if self.has_grid_positions else 1, -1, -1)
        return self._read(context, tokens, mask, positions, context.position + mask.sum(dim=1), causal)

    def _read(
        self,
        context: Context | None,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        follows: Tensor,
        causal: bool,
        **extra: Any,
    ) -> Context:
        """Read tokens (B, N, D) at positions (R, B, N); `follows` (B,) is the position after them."""
        model, cache = self.language_model, GrowingCache(context)
        allowed = attention_mask(context, mask, causal)
        tokens = tokens.to(model.dtype)
        if model.config._attn_implementation == "eager":
            allowed = torch.zeros_like(allowed, dtype=tokens.dtype).masked_fill(~allowed, torch.finfo(tokens.dtype).min)
        output = model(
            inputs_embeds=tokens,
            attention_mask=allowed,
            position_ids=positions if len(positions) > 1 else positions[0],
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        return joined(context, cache, mask, follows, output.last_hidden_state, rotation_frequencies(model))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) -> (…, V)"""
        weight = self.vlm.get_input_embeddings().weight if self.is_tied else None
        return self.lm_head(hidden) if weight is None else nn.functional.linear(hidden, weight)

    @torch.no_grad()
    def write(self, context: Context, most: int, eos: int) -> tuple[Tensor, Context]:
        """Write the likeliest tokens up to `eos`, at most `most`: ids (B, T), eos after the end, and the context."""
        ids, writes = [], torch.ones_like(context.position, dtype=torch.bool)
        while len(ids) < most and writes.any():
            token = self.logits(context.last).argmax(dim=-1).where(writes, eos)
            ids.append(token)
            context = self.append(context, self.embed(token[:, None]), writes[:, None])
            writes = writes & (token != eos)
        return torch.stack(ids, dim=1), context

    @torch.no_grad()
    def try_out(self) -> None:
        """Read a black image and a few tokens; whatever is not as it should be raises an error."""
        device, policy = next(self.parameters()).device, self.policy
        images = torch.zeros(1, 1, 3, policy.image_height, policy.image_width, dtype=torch.uint8, device=device)
        ids = torch.zeros(1, 2, dtype=torch.long, device=device)
        exists = torch.ones_like(ids, dtype=torch.bool)
        context = self.read(images if policy.num_images else None, None, ids, exists)
        context = self.append(context, self.embed(ids), exists)
        if context.keys[-1].shape[2] != context.mask.shape[1]:
            raise RuntimeError(f"{context.keys[-1].shape[2]} keys of {context.mask.shape[1]} tokens")

    # ---- gradient checkpointing ----

    def checkpoint_layers(self, function: Callable[..., Any] | None) -> None:
        """Recompute the language model's layers in the backward pass; None: keep their activations again.

        transformers' own way gives up the cache, from which the head reads.
        """
        for layer in self.language_model.layers:
            layer.gradient_checkpointing = False
            layer.__dict__.pop("forward", None)
            if function is not None:
                layer.forward = functools.partial(checkpointed, layer, layer.forward, function)


@contextlib.contextmanager
def refusing_others(model_type: str) -> Iterator[None]:
    """Make ValueError of what building or reading a backbone of another family than the proved ones raises."""
    try:
        yield
    except Exception as error:  # code of transformers that takes other arguments, or that lacks a part
        if model_type in PROVED or isinstance(error, ValueError):
            raise
        raise ValueError(
            f"`model: {{name: vla}}`: a backbone of type {model_type} is not built like those that are known: "
            f"{FAMILIES} ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


class LayerCache:
    """The part of a cache that one layer uses, so that computing the layer again changes nothing else."""

    def __init__(self, cache: GrowingCache):
        self.cache = GrowingCache(cache.context)

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.update(*args, **kwargs)


def checkpointed(
    layer: nn.Module,
    forward: Callable[..., Any],
    function: Callable[..., Any],
    hidden: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call `forward` of a layer so that its activations are computed again in the backward pass."""
    cache = kwargs["past_key_values"]
    if not (layer.training and torch.is_grad_enabled()):
        return forward(hidden, *args, **kwargs)

    def run(hidden: Tensor) -> tuple[Any, Tensor, Tensor]:
        own = LayerCache(cache)
        output = forward(hidden, *args, **{**kwargs, "past_key_values": own})
        ((keys, values),) = zip(own.cache.keys.values(), own.cache.values.values(), strict=True)
        return output, keys, values

    output, keys, values = function(run, hidden)
    index = layer.self_attn.layer_idx
    cache.keys[index], cache.values[index] = keys, values
    return output


def language_model_name(vlm: PreTrainedModel) -> str:
    """Name of the language model in a vision-language model.

    Raises:
        ValueError: it has none, or no features of images that `Backbone` could ask for.
    """
    has_vision = hasattr(vlm, "connector") or hasattr(vlm, "get_image_features")
    name = next((name for name in LANGUAGE_MODELS if hasattr(vlm, name)), None)
    if name is None or not has_vision or not hasattr(getattr(vlm, name), "layers"):
        raise ValueError(
            f"`model: {{name: vla}}`: {type(vlm).__name__} is not built like the backbones that are known: {FAMILIES}"
        )
    return name


def rotation_frequencies(language_model: nn.Module) -> list[Tensor]:
    """Frequencies (E / 2,) by which each layer of a language model rotates its keys."""
    rotary, count = language_model.rotary_emb, len(language_model.layers)
    kinds = getattr(language_model.config, "layer_types", None) or ["full_attention"] * count
    shared = getattr(rotary, "inv_freq", None)
    return [shared if shared is not None else getattr(rotary, f"{kind}_inv_freq") for kind in kinds[:count]]
