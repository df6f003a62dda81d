"""Records of text for fine-tuning: chats, prompts with completions, plain text; one JSON object each (see `forms`).

A sample is a row of `block_size` tokens that holds one record or, packed, several that do not attend to one another.
Importing this needs nothing but the standard library, so that a configuration can be checked without delay.
"""

import dataclasses
from pathlib import Path

from data.records.config import READY, Config
from data.text.config import PredictFlags as PredictFlags
from storage.config_keys import lazy

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


def metric_names() -> tuple[str, ...]:
    """Names of what the metrics may compute; a configuration that misspells one is refused."""
    from metrics.language import LanguageMetric

    return tuple(LanguageMetric.directions)


def check(config: Config, run) -> list[str]:
    """Return the problems that show without a tokenizer, one line each; the first record of each path is read."""
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
            problems += first_problem(train, config.text_column)
        except ValueError as error:
            problems.append(str(error))
            continue
        if key == "path" and held_out is not None and config.eval_path is None and config.eval_fraction:
            split = f"would hold out more than {path} does in a split of its own"
            remedy = "leave it out, or set it to 0 to evaluate on nothing"
            problems.append(f"dataset.eval_fraction {config.eval_fraction:g} {split}; {remedy}")
    if config.tokenizer is None and run.process.model_name_or_path is None:
        problems.append("no tokenizer is known: set dataset.tokenizer, or model_name_or_path to a model that has one")
    if config.packing and getattr(run.process, "flash_attn", False):
        problems.append(
            "dataset.packing: true and flash_attn: flash attention does not keep the records of a row apart in batches "
            "of several rows; set one of them to false"
        )
    if config.packing and getattr(run, "trainer", {}).get("use_cache"):
        problems.append(
            "dataset.packing: true and use_cache: with a cache, models do not keep the records of a row apart; set one "
            "of them to false"
        )
    return problems


def is_to_prepare(path: str, run) -> bool:
    """Return whether `path` names a built-in data set that is not made yet."""
    from data.records.source import located

    return path in READY and located(path, Path(run.cache_dir)) is None


def prepared(config: Config, run) -> Config:
    """Return the configuration with the folder of a built-in data set, which is made on first use."""
    if config.path not in READY or not is_to_prepare(config.path, run):
        return config
    folder = Path(run.cache_dir) / "datasets" / config.path
    print(f"preparing {config.path} in {folder}: {READY[config.path]}", flush=True)
    prepare(config.path, folder)
    return dataclasses.replace(config, path=str(folder))


def prepare(name: str, folder: Path) -> None:
    """Make the built-in data set `name` in `folder`; ValueError if that holds something else."""
    from data.records.builtin_datasets import make

    make(Path(folder))


def build(config: Config, run):
    """Return the `Bundle` of the configured records; raise ValueError if they cannot be used."""
    problems = check(config, run)
    if problems:
        raise ValueError(problems[0])
    from data.records.build_bundle import assemble

    return assemble(config, run)


__getattr__ = lazy(__name__, Processor="data.records.processor")
