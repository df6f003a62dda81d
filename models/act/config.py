"""Configuration keys of ACT; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.policy import PolicyConfig
from storage.config_keys import TRAJECTORY, key


@dataclass
class Config(PolicyConfig):
    """Keys of `model: {name: act}`; the defaults are the paper's."""

    hidden_dim: int = key(512, "width of every token", ge=4)
    num_heads: int = key(8, "attention heads; divides hidden_dim", ge=1)
    feedforward_dim: int = key(3200, "inner width of feed-forward blocks", ge=1)
    encoder_layers: int = key(4, "layers over latent, state and images", ge=1)
    decoder_layers: int = key(
        1,
        "layers over the chunk's queries, all of them used; the paper's code builds 7 but reads "
        "only the first one's output, so 1 is what it trained",
        ge=1,
    )
    cvae_layers: int = key(4, "layers that encode demonstrated chunks", ge=1)
    latent_dim: int = key(32, "numbers in the style variable z", ge=1)
    kl_weight: float = key(10.0, "loss = L1 + kl_weight × KL", ge=0, on_resume=TRAJECTORY)
    use_cvae: bool = key(True, "learn z from the demonstrated chunk; false: z is always 0, no KL, faster")
    dropout: float = key(0.1, "in every attention and feed-forward block", ge=0, lt=1, on_resume=TRAJECTORY)
    pre_norm: bool = key(False, "layer norm before each block; false: after it, as in the paper")
    env_state_dim: int = key(
        0,
        "so many last numbers of the state are the environment's: a token of their own, which the encoder of "
        "demonstrated chunks does not read, as in LeRobot; 0: one token for the state",
        ge=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads: {self.num_heads}; "
                f"try hidden_dim {self.num_heads * max(1, round(self.hidden_dim / self.num_heads))}"
            )
        if self.state_dim is not None and self.env_state_dim >= self.state_dim:
            raise ValueError(
                f"model.env_state_dim: {self.env_state_dim} leaves nothing of the data's state of {self.state_dim} "
                "numbers; lower it"
            )
        if self.hidden_dim % 4:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by 4: "
                "the sines and cosines of two image axes share it"
            )
