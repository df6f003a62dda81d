"""Records of text for fine-tuning: chats, prompts with completions, plain text; one JSON object each.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"text": "…"}

A sample is a row of `block_size` tokens that holds one record or, packed, several that do not see one another.
Importing this needs nothing but the standard library, so that a configuration can be checked in no time.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.config_keys import EVALUATION, HARMLESS, IMPOSSIBLE

PROCESS_KEYS = frozenset(
    {
        "cache_dir",
        "model_name_or_path",  # its tokenizer, where dataset.tokenizer names none
        "trust_remote_code",
        "sample_tokens",
        "sample_prompt",
        "sample_count",
        "sample_temperature",
        "sample_top_k",
    }
)

# Sets that `prepare` makes by name, and what they are.
READY = {
    "python_docstrings": "functions of Python's standard library, and the first paragraph of their docstrings",
}


def described(text: str, default=None, **bounds):
    """A Config field with its help text."""
    return field(default=default, metadata={"help": text, **bounds})


@dataclass
class Config:
    """YAML section `dataset` with `name: records`."""

    path: str | None = described(
        "a .jsonl or .json file, a folder of them (train.jsonl and val.jsonl: its split), a name in data/ or "
        "$KEEL_HOME/datasets, python_docstrings (made from the installed standard library), or a Hugging Face "
        "data set's id",
        on_resume=HARMLESS,
    )
    eval_path: str | None = described("held-out records, where they lie apart: as `path`", on_resume=EVALUATION)
    eval_fraction: float | None = described(
        "share of the records held out, drawn by seed and content; unset: 0.1, where no held-out records are given",
        ge=0,
        lt=1,
    )
    tokenizer: str | None = described(
        "folder, .gguf file or hub id of the tokenizer; unset: the one of model_name_or_path", on_resume=IMPOSSIBLE
    )
    block_size: int = described("tokens of a row; a longer record loses its end", 512, ge=2)
    packing: bool = described(
        "several records in a row, each with positions from 0 and blind to the others; false: a row for each", True
    )
    text_column: str | None = described("key of plain text, where every record is that; unset: `text`")
    loss_on: Literal["assistant", "all"] = described(
        "tokens that are learned: what the assistant says, its end of turn included (of a prompt and completion, the "
        "completion), or all; plain text is learned whole",
        "assistant",
    )
    chat_template: str | None = described(
        "a Jinja template, or a file that holds one, for a tokenizer without a chat template or instead of its own"
    )

    def __post_init__(self):
        if self.eval_path is not None and self.eval_fraction is not None:
            raise ValueError(
                f"dataset.eval_path {self.eval_path} gives the held-out records, so dataset.eval_fraction "
                f"{self.eval_fraction:g} would draw none; leave one of them out"
            )


def check(config: Config, run) -> list[str]:
    """Problems that can be seen without a tokenizer, one line each; the first record of each file set is read."""
    from data.records.source import find, first_problem

    problems = []
    if config.path is None:
        problems.append(f"dataset.path is not set; name a .jsonl file, a folder of them, or {', '.join(READY)}")
    for key in ("path", "eval_path"):
        path = getattr(config, key)
        if path is None or is_to_prepare(path, run):
            continue
        try:
            train, held_out = find(path, Path(run.cache_dir), f"dataset.{key}")
            problems += first_problem(train, config)
        except ValueError as error:
            problems.append(str(error))
            continue
        if key == "path" and held_out is not None and config.eval_path is None and config.eval_fraction:
            problems.append(
                f"dataset.eval_fraction {config.eval_fraction:g} would hold out more than {path} does in a split of "
                "its own; leave it out, or set it to 0 to evaluate on nothing"
            )
    if config.tokenizer is None and run.process.model_name_or_path is None:
        problems.append("no tokenizer is known: set dataset.tokenizer, or model_name_or_path to a model that has one")
    if config.packing and getattr(run.process, "flash_attn", False):
        problems.append(
            "dataset.packing: true and flash_attn: flash attention does not keep the records of a row apart in batches "
            "of several rows; set one of them to false"
        )
    return problems


def is_to_prepare(path: str, run) -> bool:
    """Whether `path` is the name of a set that is yet to be made."""
    from data.records.source import is_found

    return path in READY and not is_found(path, Path(run.cache_dir))


def prepared(config: Config, run) -> Config:
    """The config with a ready name as a folder; the set is made on first use."""
    if config.path not in READY or not is_to_prepare(config.path, run):
        return config
    folder = Path(run.cache_dir) / "datasets" / config.path
    print(f"preparing {config.path} in {folder}: {READY[config.path]}", flush=True)
    prepare(config.path, folder)
    return dataclasses.replace(config, path=str(folder))


def prepare(name: str, folder: Path) -> dict:
    """Makes the ready set `name`, train.jsonl and val.jsonl, in `folder`; returns {"train": records, "val": records}.

    Raises:
        ValueError: no such set, or the folder is there and holds something else.
    """
    from data.records.ready import make

    return make(name, Path(folder))


def build(config: Config, run):
    """The `Bundle` of the configured records; raises ValueError where they cannot be used."""
    problems = check(config, run)
    if problems:
        raise ValueError(problems[0])
    from data.records.assemble import assemble

    return assemble(config, run)
