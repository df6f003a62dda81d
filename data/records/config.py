"""Declare the configuration keys of fine-tuning records; needs only the standard library."""

from dataclasses import dataclass
from typing import Literal

from storage.config_keys import EVALUATION, HARMLESS, IMPOSSIBLE, key

# Built-in data sets, and what they are.
READY = {
    "python_docstrings": "functions of Python's standard library, and the first paragraph of their docstrings",
}


@dataclass
class Config:
    """YAML section `dataset` with `name: records`."""

    path: str | None = key(
        None,
        "a .jsonl or .json file (or .gz of it), a folder of them (train* and val*: its splits), a name in data/ or "
        "$KEEL_HOME/datasets, python_docstrings (made from the installed standard library), or a Hugging Face "
        "dataset's id",
        on_resume=HARMLESS,
        is_path=True,
    )
    eval_path: str | None = key(
        None, "validation records, if they are separate: as `path`", on_resume=EVALUATION, is_path=True
    )
    eval_fraction: float | None = key(
        None,
        "share of records that validates, drawn by seed and content; unset: 0.1, if no validation records are given",
        ge=0,
        lt=1,
        unless=("eval_path",),
    )
    tokenizer: str | None = key(
        None,
        "folder, .gguf file or hub id of the tokenizer; unset: the one of model_name_or_path",
        on_resume=IMPOSSIBLE,
        is_path=True,
    )
    block_size: int = key(512, "tokens of a row; a longer record loses its end", ge=2)
    packing: bool = key(
        True, "several records in a row, with separate positions and attention; false: one row per record"
    )
    text_column: str | None = key(None, "key of the text, if every record is plain text; unset: `text`")
    loss_on: Literal["assistant", "all"] = key(
        "assistant",
        "tokens that carry loss: those of the assistant's turns (of a prompt and completion, the completion), or all; "
        "in plain text all do",
    )
    chat_template: str | None = key(
        None,
        "a Jinja template, or a file that holds one, for a tokenizer without a chat template or instead of its own",
        is_path=True,
    )
