"""Configuration keys of the tracker; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from storage.config_keys import key

DIMS = ("crop_size", "channels", "anchors", "clip_length")


@dataclass
class MLPConfig:
    """`mlp_cfg`: layers that mix the encoded coordinates."""

    hidden_dims: int | None = key(None, "units of a hidden layer; null: d_model", ge=1)
    hidden_dim: int | None = key(None, "the same under another name", ge=1)
    num_layers: int = key(1, "hidden layers", ge=0)
    dropout: float = key(0.0, "dropout after each hidden layer", ge=0, lt=1)

    def __post_init__(self) -> None:
        if None not in (self.hidden_dims, self.hidden_dim) and self.hidden_dims != self.hidden_dim:
            raise ValueError(f"hidden_dims: {self.hidden_dims} and hidden_dim: {self.hidden_dim} differ; keep one")


@dataclass
class PositionConfig:
    """`embedding_meta.pos`: how the place of an instance is encoded."""

    mode: Literal["fixed", "learned"] | None = key("learned", "sines of the coordinates, a learned table, or none")
    n_points: int = key(
        1, "points on the box's diagonal; 1: the centroid, of learned tables the corners (over_boxes)", ge=1
    )
    normalize: bool = key(True, "fixed: multiply coordinates, shares of the image, by `scale`; else they are angles")
    temperature: float = key(10000.0, "fixed: base of the sines' wavelengths", gt=1)
    scale: float | None = key(None, "fixed: angle that the image's side makes; null: 2 pi", gt=0, needs="normalize")
    emb_num: int = key(16, "learned: entries of the table, between which values are interpolated", ge=2)
    over_boxes: bool = key(True, "learned: corners of the box (y1x1y2x2); false: centroid and size (yxhw)")
    mlp_cfg: MLPConfig | None = key(None, "layers that mix the encoded coordinates; null: one linear map where needed")

    def __post_init__(self) -> None:
        self.mlp_cfg = _nested(MLPConfig, self.mlp_cfg)


@dataclass
class TimeConfig:
    """`embedding_meta.temp`: how the frame of an instance is encoded."""

    mode: Literal["fixed", "learned"] | None = key("learned", "sines of the frame, a learned table, or none")
    temperature: float = key(10000.0, "fixed: base of the sines' wavelengths", gt=1)
    emb_num: int = key(16, "learned: entries of the table, which spans dataset.clip_length frames", ge=2)


@dataclass
class EmbeddingConfig:
    """`embedding_meta`."""

    pos: PositionConfig = field(default_factory=PositionConfig, metadata={"help": "the place of an instance"})
    temp: TimeConfig = field(default_factory=TimeConfig, metadata={"help": "the frame of an instance"})

    def __post_init__(self) -> None:
        self.pos, self.temp = _nested(PositionConfig, self.pos), _nested(TimeConfig, self.temp)


@dataclass
class EncoderConfig:
    """`encoder_cfg`: the visual encoder of the crops."""

    model_name: str = key(
        "resnet18",
        "resnet18, resnet34, convnext_tiny … (models/tracker/encoders.py lists them); conv: a small network; "
        "descriptors: size and moments of a crop, nothing learned; none: coordinates alone",
    )
    backend: Literal["timm", "torchvision"] = key(
        "timm", "whose names are used; the network is transformers' own, the same for both"
    )
    in_chans: int | None = key(None, "channels; a multiple of the crops' repeats them. null: as the crops", ge=1)
    pretrained: bool = key(False, "start from weights of ImageNet: `weights`, or the network's on the hub")
    weights: str | None = key(
        None, "folder or hub id of a transformers model of this architecture", needs="pretrained", is_path=True
    )
    widths: list[int] = key([16, 32, 64], "conv: channels of each stage, multiples of 4; each halves the crop")

    def __post_init__(self) -> None:
        if not self.widths or any(width < 1 or width % 4 for width in self.widths):
            raise ValueError(f"widths: {self.widths} must be multiples of 4, at least one")
        if self.pretrained and self.model_name in ("conv", "descriptors", "none"):
            raise ValueError(f"model_name: {self.model_name} has no pretrained weights; set pretrained to false")


@dataclass
class Config:
    """Keys of `model: {name: tracker}`."""

    d_model: int = key(128, "width of the transformer", ge=2)
    nhead: int = key(1, "attention heads; they divide d_model", ge=1)
    num_encoder_layers: int = key(1, "encoder layers", ge=0)
    num_decoder_layers: int = key(1, "decoder layers", ge=1)
    dropout: float = key(0.1, "dropout in the transformer", ge=0, lt=1)
    activation: Literal["relu", "gelu", "glu"] = key("relu", "of the feed-forward layers")
    return_intermediate_dec: bool = key(True, "the loss sees the output of every decoder layer, not of the last alone")
    norm: bool = key(False, "layer norm after each block and after the encoder and the decoder")
    num_layers_attn_head: int = key(1, "linear layers of the association head's two projections", ge=1)
    dropout_attn_head: float = key(0.1, "dropout between them", ge=0, lt=1)
    return_embedding: bool = key(False, "return the embeddings of place and time as output `embedding`, too")
    decoder_self_attn: bool = key(True, "the decoder's queries attend to each other")
    relative_geometry: bool = key(
        False, "bias attention and association by displacement, size ratio and time between two instances"
    )
    motion: bool = key(
        False,
        "add to this geometry the displacement that motion since the frame before does not explain",
        needs="relative_geometry",
    )
    embedding_meta: EmbeddingConfig = field(
        default_factory=EmbeddingConfig, metadata={"help": "embeddings of place (`pos`) and time (`temp`)"}
    )
    encoder_cfg: EncoderConfig = field(default_factory=EncoderConfig, metadata={"help": "visual encoder of the crops"})
    crop_size: int | None = key(None, "pixels of a crop's side; known from the data", ge=1)
    channels: int | None = key(None, "channels of a crop, of all anchors; known from the data", ge=0)
    anchors: int | None = key(None, "boxes of an instance; known from the data", ge=1)
    clip_length: int | None = key(None, "frames of a clip; known from the data", ge=1)

    def __post_init__(self) -> None:
        self.embedding_meta = _nested(EmbeddingConfig, self.embedding_meta)
        self.encoder_cfg = _nested(EncoderConfig, self.encoder_cfg)
        if self.d_model % self.nhead:
            raise ValueError(f"nhead: {self.nhead} must divide d_model: {self.d_model}")
        if self.d_model % 2:
            raise ValueError(f"d_model: {self.d_model} must be even")


def _nested(kind: type, value: Any) -> Any:
    """A section as its dataclass; config.json holds it as a mapping."""
    return kind(**value) if isinstance(value, dict) else value
