"""A GPT: the decoder-only transformer of GPT-2 (Radford et al. 2019), from scratch or from GPT-2's weights.

Options give it rotary positions, RMS norms, SwiGLU, norms of queries and keys, and grouped queries.

    python train.py --dataset shakespeare_char --model_config configs/model/gpt.yaml

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from storage.config_keys import TRAJECTORY

if TYPE_CHECKING:
    from models.gpt.network import GPT

PROCESS_KEYS: frozenset[str] = frozenset({"model_name_or_path", "cache_dir"})

# Part name -> regular expression over parameter and module names. A tied head is the token embedding itself.
PARTS: dict[str, str] = {
    "llm": r"^(token_embedding|position_embedding|blocks|norm)(\.|$)",
    "backbone": r"^(token_embedding|position_embedding|blocks|norm)(\.|$)",
    "embeddings": r"^(token_embedding|position_embedding)(\.|$)",
    "head": r"^head(\.|$)",
}

# Sizes that a new network has where neither the configuration nor a pretrained model says.
FROM_SCRATCH: dict[str, Any] = {"n_layer": 6, "n_head": 6, "n_embd": 384, "bias": False, "mlp": "gelu"}


def size(help_text: str, source: str) -> int | None:
    """A size that something else may know; None: that one."""
    return field(default=None, metadata={"help": f"{help_text}; null: {source}", "ge": 1})


@dataclass
class Config:
    """Keys of `model: {name: gpt}`."""

    n_layer: int | None = size("transformer blocks", "the pretrained model's, 6 from scratch")
    n_head: int | None = size("attention heads; divides n_embd", "the pretrained model's, 6 from scratch")
    n_embd: int | None = size("width of every token", "the pretrained model's, 384 from scratch")
    n_kv_head: int | None = size("heads of keys and values, each shared by n_head / n_kv_head queries", "n_head")
    block_size: int | None = size("longest input, in tokens", "the data's")
    vocab_size: int | None = size("tokens of the vocabulary", "the data's")
    vocab_sizes: list[int] | None = field(
        default=None, metadata={"help": "tokens of each vocabulary where there are several; filled in from the data"}
    )
    dataset_names: list[str] | None = field(
        default=None,
        metadata={"help": "data sets that the vocabularies belong to, one to a batch; filled in from the data"},
    )
    context_names: list[str] | None = field(
        default=None,
        metadata={"help": "contexts that the vocabularies belong to, all in each sample; filled in from the data"},
    )
    dropout: float = field(
        default=0.0,
        metadata={
            "help": "after embeddings, attention and feed-forward",
            "ge": 0,
            "lt": 1,
            "on_resume": TRAJECTORY,
        },
    )
    bias: bool | None = field(
        default=None,
        metadata={"help": "biases in linear layers and layer norms; null: the pretrained model's, false from scratch"},
    )
    tie_head: bool = field(
        default=True, metadata={"help": "the output head is the token embedding; false: has weights of its own"}
    )
    position: Literal["learned", "rope", "none"] = field(
        default="learned", metadata={"help": "learned: a table; rope: queries and keys are rotated; none: no positions"}
    )
    rope_theta: float | None = field(
        default=None, metadata={"help": "slowest rotation of `position: rope`, in tokens / 2π; null: 10000", "gt": 1}
    )
    norm: Literal["layernorm", "rmsnorm"] = field(default="layernorm", metadata={"help": "norm before each block"})
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] | None = field(
        default=None,
        metadata={
            "help": "gelu: two layers; gelu_tanh: with GPT-2's approximation, slower on a CPU; swiglu: gated, three "
            "matrices; null: the pretrained model's, gelu from scratch"
        },
    )
    mlp_ratio: float | None = field(
        default=None,
        metadata={
            "help": "inner width of feed-forward blocks / n_embd; null: 4, and for swiglu 8/3 up to a multiple of 64",
            "gt": 0,
        },
    )
    qk_norm: bool = field(default=False, metadata={"help": "RMS norm of each head's queries and keys"})

    def __post_init__(self) -> None:
        self._check_heads()
        self._check_vocabularies()
        if self.rope_theta is not None and self.position != "rope":
            raise ValueError(
                f"model.rope_theta: {self.rope_theta:g} would do nothing with model.position: {self.position}; "
                "set position to rope or rope_theta to null"
            )

    def _check_heads(self) -> None:
        if None not in (self.n_embd, self.n_head):
            if self.n_embd % self.n_head:
                raise ValueError(
                    f"model.n_embd: {self.n_embd} is not divisible by model.n_head: {self.n_head}; "
                    f"try n_embd {self.n_head * max(1, round(self.n_embd / self.n_head))}"
                )
            if self.position == "rope" and self.n_embd // self.n_head % 2:
                raise ValueError(
                    f"model.position: rope rotates pairs of numbers, and heads of n_embd {self.n_embd} / n_head "
                    f"{self.n_head} = {self.n_embd // self.n_head} are odd; choose an even head size"
                )
        if None not in (self.n_head, self.n_kv_head) and self.n_head % self.n_kv_head:
            raise ValueError(
                f"model.n_head: {self.n_head} is not divisible by model.n_kv_head: {self.n_kv_head}; "
                "queries share heads of keys and values in equal groups"
            )

    def _check_vocabularies(self) -> None:
        names = [key for key in ("dataset_names", "context_names") if getattr(self, key) is not None]
        if self.vocab_sizes is None:
            if names:
                raise ValueError(f"model.{names[0]} names vocabularies; give their sizes as model.vocab_sizes")
            return
        if len(names) != 1:
            raise ValueError("model.vocab_sizes needs either model.dataset_names or model.context_names, not both")
        given = getattr(self, names[0])
        if len(given) != len(self.vocab_sizes) or len(set(given)) != len(given):
            raise ValueError(
                f"model.{names[0]}: {given} must be {len(self.vocab_sizes)} different names, one for each of "
                f"model.vocab_sizes: {self.vocab_sizes}"
            )
        if min(self.vocab_sizes, default=0) < 1:
            raise ValueError(f"model.vocab_sizes: {self.vocab_sizes} must be sizes of at least 1")
        if self.vocab_size not in (None, max(self.vocab_sizes)):
            raise ValueError(
                f"model.vocab_size: {self.vocab_size} contradicts model.vocab_sizes: {self.vocab_sizes}; leave it out"
            )


def build(config: Config, process: Any) -> GPT:
    """A new network for the data's dims, or GPT-2's weights where `process.model_name_or_path` names them.

    With `is_pretrained` or `load_pretrain` the path is one of our own checkpoints: what the configuration leaves open
    is taken from it, its weights are loaded by `models.adapt`.

    Args:
        config: with the data's dims filled in.
        process: process parameters; `cache_dir` holds what a hub gives (null: the hub's own default).

    Raises:
        ValueError: a dim is missing, or the pretrained model is not found or does not fit.
    """
    from models.gpt.start import build_network

    return build_network(config, process)


def load(folder: str | Path) -> GPT:
    """The network saved in `folder`, in evaluation mode."""
    from models.gpt.network import GPT
    from models.pretrained import load_checkpoint

    return load_checkpoint(GPT, folder)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> GPT:
    """The network that the adapter in `folder` was trained for: GPT-2's weights or a network of ours at `place`."""
    from models.gpt.start import load_for_adapter

    return load_for_adapter(place, folder, cache_dir)
