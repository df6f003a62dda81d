"""Text as token ids: folders with `train.bin` and `val.bin`, memory-mapped, one or several of them.

A sample is a window of block_size tokens and the token that follows each of them. Importing this module needs nothing
but the standard library, so that a configuration can be checked in no time.
"""

from __future__ import annotations

import os
from pathlib import Path

from data.text.config import READY, Config, find
from data.text.config import PredictFlags as PredictFlags
from storage.config_keys import lazy
from storage.suggestions import did_you_mean

PROCESS_KEYS = frozenset(
    {"cache_dir", "sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k"}
)
RECORDS = (".jsonl", ".ndjson", ".json")  # endings of files that the task `records` reads


def metric_names() -> tuple[str, ...]:
    """Names of what the metrics may compute; a configuration that misspells one is refused."""
    from metrics.language import LanguageMetric

    return tuple(LanguageMetric.directions)


def check(config: Config, run) -> list[str]:
    """Return the problems that the files' sizes and first bytes show, one line each."""
    from data.text.folder import disagreements, foreign_to_weights, read_folder

    if not config.paths():
        return ["dataset.path is not set; name a prepared text (prepare.py), or one of " + ", ".join(READY)]
    problems, folders = run_problems(config, run), []
    for path in config.paths():
        place = find(path, run.cache_dir)
        if place is None:
            problems += [missing(config, path, run.cache_dir)] if path not in READY else []
            continue
        try:
            folders.append(read_folder(place, config.vocab_size))
        except ValueError as error:
            problems.append(f"{config.named('path')}: {error}")
    if len(folders) == len(config.paths()):
        problems += step_problems(config, folders, run)
    problems += foreign_to_weights(config, folders, run.process.model_name_or_path)
    return problems + disagreements(config, folders)


def missing(config: Config, path: str, cache_dir: Path) -> str:
    """Return what to do about a data set that is not there."""
    where, place = config.named("path"), os.path.expanduser(path)
    if os.path.isfile(place):
        if Path(path.removesuffix(".gz")).suffix in RECORDS:
            return f"{where}: {path} is a file of records, not a folder of tokens; --task_name records trains on them"
        return (
            f"{where}: {path} is a file, not a folder of tokens; prepare it: python prepare.py --dataset "
            f"{Path(path).stem} --text {path} --tokenizer bytes"
        )
    if os.path.isdir(place):
        return f"{where}: the folder {path} has neither train.bin nor val.bin; name the one that prepare.py wrote"
    shelves = (Path("data"), Path(cache_dir) / "datasets")
    known = {*READY, *(file.parent.name for shelf in shelves for file in shelf.glob("*/train.bin"))}
    prepare = f"; prepare it: python prepare.py --dataset {path} --text FILE --tokenizer bytes"
    remedy = did_you_mean(path, sorted(known), prepare)
    return f"{where}: no data set {path} here, in {shelves[0]}/ or in {shelves[1]}{remedy}"


def run_problems(config: Config, run) -> list[str]:
    """Return the settings of the run with which a mixture of data sets would not be the configured one.

    The number of a batch's first sample decides its data set, so batch size and numbering must not change.
    """
    if config.mode != "multidataset":
        return []
    problems, process, moves = [], run.process, config.sampling_probs_final is not None
    if process.tune_batch_size:
        problems.append(
            f"tune_batch_size changes which data set a batch is drawn from ({config.named('mode')} multidataset); set "
            "--per_device_train_batch_size instead"
        )
    if not process.shuffle and not config.interleave:
        problems.append(
            f"shuffle: false reads the data in stored order, but {config.named('mode')} multidataset draws from which "
            f"data set; set {config.named('interleave')} true for a fixed order, or leave shuffle out"
        )
    whole_epochs = isinstance(process.limit_train_batches, float) and process.limit_train_batches == 1
    if not whole_epochs and (moves or config.interleave):
        key = "sampling_probs_final" if moves else "interleave"
        problems.append(
            f"limit_train_batches: {process.limit_train_batches} leaves out the end of each epoch, and with it a part "
            f"of what {config.named(key)} plans; set --max_steps instead"
        )
    if moves and run.hyper.max_steps <= 0 and run.hyper.num_train_epochs == -1:
        problems.append(
            f"{config.named('sampling_probs_final')} are reached at the run's end, but num_train_epochs: -1 has none; "
            "set --max_steps"
        )
    return problems


def step_problems(config: Config, folders: list, run) -> list[str]:
    """Return a problem if a step takes more samples than the data has windows, counted at every position.

    The numbers alone of the samples of a mistyped batch size can fill the memory.
    """
    counted = folders[:1] if config.mode == "multicontext" else folders
    windows = sum(max(0, folder.splits["train"].tokens - config.block_size) for folder in counted)
    step = run.samples_per_step
    if not 0 < windows < step:
        return []
    batch = run.hyper.per_device_train_batch_size
    return [
        f"--per_device_train_batch_size (--batch_size) {batch} makes a step of {step:,} samples, with "
        f"gradient_accumulation_steps and processes counted, but the text has {windows:,} windows of "
        f"{config.block_size} tokens; lower it, or use a longer text"
    ]


def prepared(config: Config, run) -> Config:
    """Prepare the data sets of `READY` that the configuration names and that are missing; return the configuration."""
    if any(path in READY and find(path, run.cache_dir) is None for path in config.paths()):
        from data.text import builtin_datasets

        return builtin_datasets.prepared(config, run)
    return config


def build(config: Config, run):
    """Return the `Bundle` of the configured data sets; raise ValueError if they cannot be used."""
    from data.text.build_bundle import assemble

    problems = check(config, run)
    problems += [
        f"{config.named('path')}: {path} is not prepared yet; run python prepare.py --dataset {path}"
        for path in config.paths()
        if path in READY and find(path, run.cache_dir) is None
    ]
    if problems:
        raise ValueError(problems[0])
    return assemble(config, run)


__getattr__ = lazy(__name__, Processor="data.text.processor")
