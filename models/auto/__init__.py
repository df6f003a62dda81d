"""Any model of transformers: `AutoModelFor…` by hub id, folder or .gguf file, or new from a configuration.

    model: {name: auto, task: causal_lm}                        with model_name_or_path: a hub id, a folder or a .gguf
    model: {name: auto, task: causal_lm, config: {model_type: llama, hidden_size: 64, num_hidden_layers: 2}}

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROCESS_KEYS: frozenset[str] = frozenset({"model_name_or_path", "cache_dir", "trust_remote_code"})

# Derived from the model once it is there.
PARTS: dict[str, str] = {}

Task = Literal[
    "features",
    "audio_classification",
    "causal_lm",
    "ctc",
    "depth_estimation",
    "document_question_answering",
    "image_classification",
    "image_segmentation",
    "image_text_to_text",
    "masked_image_modeling",
    "masked_lm",
    "multiple_choice",
    "object_detection",
    "question_answering",
    "semantic_segmentation",
    "seq2seq_lm",
    "sequence_classification",
    "speech_seq2seq",
    "time_series_prediction",
    "token_classification",
    "video_classification",
    "visual_question_answering",
]


def class_name(task: str) -> str:
    """`causal_lm` -> `AutoModelForCausalLM`: the task is the class's name in another spelling."""
    if task == "features":
        return "AutoModel"
    special = {"lm": "LM", "ctc": "CTC", "seq2seq": "Seq2Seq"}
    return "AutoModelFor" + "".join(special.get(word, word.capitalize()) for word in task.split("_"))


@dataclass
class Config:
    """Keys of `model: {name: auto}`."""

    task: Task = field(
        default="causal_lm",
        metadata={"help": "which AutoModelFor… class: causal_lm is AutoModelForCausalLM; features is AutoModel"},
    )
    config: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "model_type and its fields, as in a config.json, for a new model with random weights; null: the "
            "architecture and weights of model_name_or_path"
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "tokens; null: the data's number, or the configuration's; pretrained weights keep their own, which "
            "must not be smaller",
            "ge": 1,
        },
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "classes; null: the data's number, or the configuration's", "ge": 1}
    )

    block_size: int | None = field(
        default=None,
        metadata={
            "help": "tokens of the longest input, which a table of positions must hold; null: the data's number",
            "ge": 1,
        },
    )

    def __post_init__(self) -> None:
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "model.config needs a model_type (llama, vit …): it says which architecture the fields are of"
            )


def build(config: Config, process: Any) -> PreTrainedModel:
    """A new model, or the pretrained one at `process.model_name_or_path`.

    With `is_pretrained` or `load_pretrain` the path gives an architecture at most; its weights are loaded by
    `models.adapt`.

    Raises:
        ValueError: neither `config` nor a path, an unknown model type or field, nothing found at the path, data with
            more tokens than the pretrained model knows, or inputs longer than its table of positions.
    """
    from models.auto.network import build_network

    return build_network(config, process)


def load(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model saved in `folder`, in evaluation mode; never looks at a hub."""
    from models.auto.network import load_saved

    return load_saved(Path(folder), trust_remote_code)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """The model at `place`, as the class and with the configuration that the adapter in `folder` was trained with."""
    from models.auto.network import load_for_adapter

    return load_for_adapter(place, folder, cache_dir, trust_remote_code)
