"""Configuration keys of the GPT over signals; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.gpt.config import check_heads
from storage.config_keys import HARMLESS, TRAJECTORY, key

DIMS = ("vocab_size", "channels", "context")


@dataclass
class TokenCorruption:
    """Replace inputs by other ids while training, so that a model learns to continue what it has drawn itself.

    The probability of a step goes from `p_start` to `p_end` on a logarithmic scale.
    """

    p_start: float = key(0.01, "probability that the first step is replaced", gt=0, le=1)
    p_end: float = key(0.01, "probability that the last step is replaced", gt=0, le=1)
    block_len_steps: int = key(8, "steps that are replaced together", ge=1)
    tokens_per_step: int = key(32, "tokens of a step, in the order in which the network reads them", ge=1)

    def __post_init__(self) -> None:
        for name in ("p_start", "p_end"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0 and at most 1")
        for name in ("block_len_steps", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")


@dataclass
class Config:
    """Keys of `model: {name: signal_gpt}`."""

    layout: Literal["streams", "flattened"] = key(
        "streams",
        "streams: a channel sees its own past; flattened: it sees the past of all channels (length channels × time)",
    )
    n_layer: int = key(2, "transformer blocks", ge=1)
    n_head: int = key(4, "attention heads; divides n_embd", ge=1)
    n_embd: int = key(64, "width of every token", ge=1)
    n_kv_head: int | None = key(None, "heads of keys and values, each shared by several queries; null: n_head", ge=1)
    position: Literal["learned", "rope"] = key(
        "rope", "of time. learned: a table; rope: queries and keys are rotated, and the context can be made longer"
    )
    rope_theta: float = key(10000.0, "slowest rotation of `position: rope`, in time steps / 2π", gt=1)
    max_position_embeddings: int | None = key(
        None, "longest context that `resume_context` may ask for; null: any", ge=1, on_resume=HARMLESS
    )
    norm: Literal["layernorm", "rmsnorm"] = key("rmsnorm", "norm before each block")
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = key("gelu", "feed-forward blocks: two layers, or three and a gate")
    mlp_ratio: float | None = key(None, "inner width of feed-forward blocks / n_embd; null: 4, for swiglu 8/3", gt=0)
    qk_norm: bool = key(False, "RMS norm of each head's queries and keys")
    bias: bool = key(False, "biases in linear layers and layer norms")
    tie_head: bool = key(True, "the output head is the token embedding; false: has weights of its own")
    dropout: float = key(0.0, "after embeddings, attention and feed-forward", ge=0, lt=1, on_resume=TRAJECTORY)
    token_corruption: TokenCorruption | None = field(
        default=None,
        metadata={"help": "replaces inputs in training, see TokenCorruption; null: none", "on_resume": HARMLESS},
    )
    vocab_size: int | None = key(None, "ids; known from the data", ge=2)
    channels: int | None = key(None, "channels; known from the data", ge=1)
    context: int | None = key(None, "longest input, in time steps; known from the data", ge=1, on_resume=HARMLESS)

    def __post_init__(self) -> None:
        if isinstance(self.token_corruption, dict):  # of a saved config.json
            self.token_corruption = TokenCorruption(**self.token_corruption)
        check_heads(self)

    def check_dims(self) -> None:
        """Raises ValueError if the data did not say what the network is built for."""
        if missing := [name for name in DIMS if getattr(self, name) is None]:
            raise ValueError(f"model: {', '.join(missing)} missing; signal_gpt needs data with `target: tokens`")
