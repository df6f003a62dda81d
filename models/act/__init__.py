"""ACT, the action chunking transformer (Zhao et al. 2023, arXiv:2304.13705).

Published, with 50 scripted demonstrations and one camera: about 90 % success on cube transfer and 50 % on
insertion.

    python train.py --task_name sim_transfer_cube_state --model_config configs/model/act.yaml

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.policy import PolicyConfig, require_dims
from storage.config_keys import TRAJECTORY

if TYPE_CHECKING:
    from models.act.network import ACT

PROCESS_KEYS: frozenset[str] = frozenset({"cache_dir"})

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^backbone(\.|$)",
    "vision_tower": r"^backbone(\.|$)",  # the same, in the words of vision-language models
    "cvae_encoder": r"^cvae_encoder(\.|$)",
    "projector": r"^(state|latent|image)_projection(\.|$)",
    "encoder": r"^(encoder|token_positions|view_positions)(\.|$)",
    "decoder": r"^(decoder|queries)(\.|$)",
    "head": r"^head(\.|$)",
}


@dataclass
class Config(PolicyConfig):
    """Keys of `model: {name: act}`; the defaults are the paper's."""

    hidden_dim: int = field(default=512, metadata={"help": "width of every token", "ge": 4})
    num_heads: int = field(default=8, metadata={"help": "attention heads; divides hidden_dim", "ge": 1})
    feedforward_dim: int = field(default=3200, metadata={"help": "inner width of feed-forward blocks", "ge": 1})
    encoder_layers: int = field(default=4, metadata={"help": "layers over latent, state and images", "ge": 1})
    decoder_layers: int = field(
        default=1,
        metadata={
            "help": "layers over the chunk's queries, all of them used; the paper's code builds 7 but reads "
            "only the first one's output, so 1 is what it trained",
            "ge": 1,
        },
    )
    cvae_layers: int = field(default=4, metadata={"help": "layers that encode demonstrated chunks", "ge": 1})
    latent_dim: int = field(default=32, metadata={"help": "numbers in the style variable z", "ge": 1})
    kl_weight: float = field(
        default=10.0,
        metadata={
            "help": "loss = L1 + kl_weight × KL",
            "ge": 0,
            "on_resume": TRAJECTORY,
        },
    )
    use_cvae: bool = field(
        default=True,
        metadata={"help": "learn z from the demonstrated chunk; false: z is always 0, no KL, faster"},
    )
    dropout: float = field(
        default=0.1,
        metadata={
            "help": "in every attention and feed-forward block",
            "ge": 0,
            "lt": 1,
            "on_resume": TRAJECTORY,
        },
    )
    pre_norm: bool = field(
        default=False, metadata={"help": "layer norm before each block; false: after it, as in the paper"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads: {self.num_heads}; "
                f"try hidden_dim {self.num_heads * max(1, round(self.hidden_dim / self.num_heads))}"
            )
        if self.hidden_dim % 4:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by 4: "
                "the sines and cosines of two image axes share it"
            )


def build(config: Config, process: Any) -> ACT:
    """A new network for the data's dims, with pretrained backbone weights if `backbone_weights` names some.

    Args:
        config: with every dim filled in.
        process: process parameters; `cache_dir` holds what a hub gives (null: the hub's own default).

    Raises:
        ValueError: a dim is missing, or the backbone's weights are not found or do not fit.
    """
    require_dims(config)
    from models.act.network import build_network

    return build_network(config, process.cache_dir)


def load(folder: str | Path) -> ACT:
    """The network saved in `folder`, in evaluation mode."""
    from models.act.network import ACT
    from models.pretrained import load_checkpoint

    return load_checkpoint(ACT, folder)
