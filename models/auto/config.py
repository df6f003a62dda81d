"""Configuration keys of models from transformers; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from storage.config_keys import key

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
    """Return the class of a task, whose name is the class's in another spelling: `AutoModelForCausalLM`."""
    if task == "features":
        return "AutoModel"
    special = {"lm": "LM", "ctc": "CTC", "seq2seq": "Seq2Seq"}
    return "AutoModelFor" + "".join(special.get(word, word.capitalize()) for word in task.split("_"))


@dataclass
class Config:
    """Keys of `model: {name: auto}`."""

    task: Task = key("causal_lm", "which AutoModelFor… class: causal_lm is AutoModelForCausalLM; features is AutoModel")
    config: dict[str, Any] | None = key(
        None,
        "model_type and its fields, as in a config.json, for a new model with random weights; null: the "
        "architecture and weights of model_name_or_path",
    )
    vocab_size: int | None = key(
        None,
        "tokens; null: the data's number, or the configuration's; pretrained weights keep their own, which "
        "must not be smaller",
        ge=1,
    )
    num_labels: int | None = key(None, "classes; null: the data's number, or the configuration's", ge=1)

    labels: list[str] | None = key(None, "names of the classes, saved as id2label; null: the data's")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = key(
        None, "one class each or any number of labels; null: as the data is"
    )
    image_size: int | None = key(None, "pixels of a side; null: the data's, or the configuration's", ge=1)
    num_channels: int | None = key(None, "channels of an image; null: the data's, or the configuration's", ge=1)
    block_size: int | None = key(
        None, "tokens of the longest input, which a table of positions must hold; null: the data's number", ge=1
    )
    packed: bool | None = key(
        None, "inputs hold several texts, which the model must separate by position_ids; null: as the data is"
    )

    def __post_init__(self) -> None:
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "model.config needs a model_type (llama, vit …): it says which architecture the fields are of"
            )
