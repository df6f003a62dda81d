"""Configuration keys of the GPT; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from storage.config_keys import TRAJECTORY, key

# Sizes of a new network that neither the configuration nor a pretrained model gives.
FROM_SCRATCH: dict[str, Any] = {"n_layer": 6, "n_head": 6, "n_embd": 384, "bias": False, "mlp": "gelu"}


@dataclass
class Config:
    """Keys of `model: {name: gpt}`."""

    n_layer: int | None = key(None, "transformer blocks; null: the pretrained model's, 6 from scratch", ge=1)
    n_head: int | None = key(
        None, "attention heads; divides n_embd; null: the pretrained model's, 6 from scratch", ge=1
    )
    n_embd: int | None = key(None, "width of every token; null: the pretrained model's, 384 from scratch", ge=1)
    n_kv_head: int | None = key(
        None, "heads of keys and values, each shared by n_head / n_kv_head queries; null: n_head", ge=1
    )
    block_size: int | None = key(None, "longest input, in tokens; null: the data's", ge=1)
    vocab_size: int | None = key(None, "tokens of the vocabulary; null: the data's", ge=1)
    vocab_sizes: list[int] | None = key(
        None, "tokens of each vocabulary where there are several; filled in from the data"
    )
    dataset_names: list[str] | None = key(
        None, "data sets that the vocabularies belong to, one to a batch; filled in from the data"
    )
    context_names: list[str] | None = key(
        None, "contexts that the vocabularies belong to, all in each sample; filled in from the data"
    )
    dropout: float = key(0.0, "after embeddings, attention and feed-forward", ge=0, lt=1, on_resume=TRAJECTORY)
    bias: bool | None = key(
        None, "biases in linear layers and layer norms; null: the pretrained model's, false from scratch"
    )
    tie_head: bool = key(True, "the output head is the token embedding; false: has weights of its own")
    position: Literal["learned", "rope", "none"] = key(
        "learned", "learned: a table; rope: queries and keys are rotated; none: no positions"
    )
    rope_theta: float | None = key(None, "slowest rotation of `position: rope`, in tokens / 2π; null: 10000", gt=1)
    norm: Literal["layernorm", "rmsnorm"] = key("layernorm", "norm before each block")
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] | None = key(
        None,
        "gelu: two layers; gelu_tanh: with GPT-2's approximation, slower on a CPU; swiglu: gated, three "
        "matrices; null: the pretrained model's, gelu from scratch",
    )
    mlp_ratio: float | None = key(
        None, "inner width of feed-forward blocks / n_embd; null: 4, and for swiglu 8/3 up to a multiple of 64", gt=0
    )
    qk_norm: bool = key(False, "RMS norm of each head's queries and keys")

    def __post_init__(self) -> None:
        check_heads(self)
        self._check_vocabularies()
        if self.rope_theta is not None and self.position != "rope":
            raise ValueError(
                f"model.rope_theta: {self.rope_theta:g} has no effect with model.position: {self.position}; "
                "set position to rope or rope_theta to null"
            )

    def _check_vocabularies(self) -> None:
        sizes = self.vocab_sizes
        named = [names for names in (self.dataset_names, self.context_names) if names is not None]
        if sizes is None and not named:
            return
        if (
            sizes is None
            or len(named) != 1
            or not len(set(named[0])) == len(named[0]) == len(sizes) > 0
            or min(sizes) < 1
            or self.vocab_size not in (None, max(sizes))
        ):
            raise ValueError(
                f"model.vocab_sizes: {sizes} needs as many different names, as either model.dataset_names: "
                f"{self.dataset_names} or model.context_names: {self.context_names}, and sizes of at least 1, the "
                f"largest of them model.vocab_size: {self.vocab_size}; leave these keys out"
            )


def check_heads(config: Any) -> None:
    """Raises ValueError if the width or the heads, as far as they are known, cannot be divided."""
    width, heads, kv_heads = config.n_embd, config.n_head, config.n_kv_head
    if None not in (width, heads):
        if width % heads:
            raise ValueError(
                f"model.n_embd: {width} is not divisible by model.n_head: {heads}; "
                f"try n_embd {heads * max(1, round(width / heads))}"
            )
        if config.position == "rope" and width // heads % 2:
            raise ValueError(
                f"model.position: rope rotates pairs of numbers, and heads of n_embd {width} / n_head {heads} = "
                f"{width // heads} are odd; choose an even head size"
            )
    if None not in (heads, kv_heads) and heads % kv_heads:
        raise ValueError(
            f"model.n_head: {heads} is not divisible by model.n_kv_head: {kv_heads}; "
            "queries share heads of keys and values in equal groups"
        )
