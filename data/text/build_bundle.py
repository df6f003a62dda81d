"""Build the `Bundle` of folders of tokens: check ids, number windows, compute vocabularies and metrics."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from data.bundle import Bundle, collate
from data.load_tokenizer import load_tokenizer
from data.samplers import Numbers, RandomStarts, StoredStarts
from data.text.config import Config, find
from data.text.dataset import AlignedTokens, EvalWindows, Tokens, TrainWindows, refuse_wrong_ids
from data.text.folder import Folder, Split, read_folder, vocabulary
from data.text.processor import Processor
from data.text.sampling import Drawn, Interleaved
from metrics.language import LanguageMetric


def assemble(config: Config, run) -> Bundle:
    """Return the Bundle of data sets that passed `data.text.check`."""
    folders = [read_folder(find(path, run.cache_dir), config.vocab_size) for path in config.paths()]
    for folder in folders:
        refuse_wrong_ids(folder, Path(run.cache_dir))
    names = unique_names([folder.path for folder in folders])
    samples = samples_of_epoch(config, folders, run)
    train = train_windows(config, folders, names, samples, run)
    return Bundle(
        train,
        eval_windows(config, folders, names),
        collate,
        functools.partial(Numbers, samples),
        dims_of(config, folders, names),
        files={"data.json": identity(config, folders, names)},
        summary=summarize(config, folders, names),
        metrics=metrics_of(config, folders, names),
        units={"tokens": config.block_size},
        processor=processor_of(config, folders),
    )


def unique_names(paths: list[Path]) -> list[str]:
    """Return a unique name for each folder, of letters, digits, _ and -, as names of metrics and parameters need."""
    names: list[str] = []
    for path in paths:
        plain = re.sub(r"[^\w-]+", "_", path.resolve().name)
        taken, name, number = {*names, "train"}, plain, 2
        while name in taken:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


# ---- the length of an epoch and of the run ----


def samples_of_epoch(config: Config, folders: list[Folder], run) -> int:
    """Return how many windows cover the training tokens once, in whole optimizer steps; at least one step."""
    counted = folders[:1] if config.mode == "multicontext" else folders
    windows = sum(folder.splits["train"].tokens // config.block_size for folder in counted)
    step = run.samples_per_step
    return max(1, windows // step) * step


def steps_of_run(samples: int, run) -> int:
    """Return the number of optimizer steps of the whole run."""
    steps = run.hyper.max_steps
    return steps if steps > 0 else max(1, math.ceil(run.hyper.num_train_epochs * (samples // run.samples_per_step)))


# ---- data sets ----


def train_windows(config: Config, folders: list[Folder], names: list[str], samples: int, run) -> TrainWindows:
    seed = run.trainer.get("data_seed")
    seed = run.seed if seed is None else seed
    starts = RandomStarts(seed) if run.process.shuffle else StoredStarts()
    tokens = [Tokens(folder.splits["train"]) for folder in folders]
    if config.mode == "multicontext":
        names, tokens = [", ".join(names)], [AlignedTokens(tokens)]
    windows = TrainWindows(names, tokens, config.block_size, samples, starts)
    if config.mode == "multidataset":
        windows.step_size, windows.says_which = run.samples_per_step, config.separate_embeddings
        first, final = config.first_probabilities(), config.sampling_probs_final
        transition, steps = config.sampling_transition or "linear", steps_of_run(samples, run)
        windows.choose = Interleaved.of(first) if config.interleave else Drawn(seed, first, final, transition, steps)
    return windows


def eval_windows(config: Config, folders: list[Folder], names: list[str]) -> dict[str, EvalWindows]:
    """Return `validation`, or for a mixture one set for each data set, under its name."""
    tokens = [Tokens(folder.splits["val"]) for folder in folders]
    if config.mode == "single":
        return {"validation": EvalWindows(tokens[0], config.block_size)}
    if config.mode == "multicontext":
        return {"validation": EvalWindows(AlignedTokens(tokens), config.block_size)}
    return {
        name: EvalWindows(split, config.block_size, number if config.separate_embeddings else None)
        for number, (name, split) in enumerate(zip(names, tokens, strict=True))
    }


def identity(config: Config, folders: list[Folder], names: list[str]) -> dict[str, Any]:
    """What identifies the tokens: saved with every checkpoint, so that a resumed run can see a change.

    Equal ids that stand for other symbols are other data: the vocabulary counts too.
    """
    data = []
    for name, folder in zip(names, folders, strict=True):
        tokens = vocabulary(folder)
        digest = tokens and hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest()[:16]
        splits = {key: [split.tokens, fingerprint(split)] for key, split in folder.splits.items()}
        data.append({"name": name, "vocab_size": folder.vocab_size, "tokenizer": digest, **splits})
    return {"block_size": config.block_size, "data": data}


def fingerprint(split: Split, sampled: int = 2**16) -> str:
    """Return a digest of up to `sampled` tokens, taken evenly from the file."""
    tokens = Tokens(split).array
    return hashlib.sha256(tokens[:: max(1, len(tokens) // sampled)].tobytes()).hexdigest()[:16]


def dims_of(config: Config, folders: list[Folder], names: list[str]) -> dict[str, Any]:
    """Return the sizes a model is built for: `vocab_size` is the largest if there are several (`vocab_sizes`)."""
    sizes = [folder.vocab_size for folder in folders]
    dims: dict[str, Any] = {"vocab_size": max(sizes), "block_size": config.block_size}
    if config.mode == "multicontext":
        dims |= {"vocab_sizes": sizes, "context_names": names}
    elif config.separate_embeddings:
        dims |= {"vocab_sizes": sizes, "dataset_names": names}
    return dims


# ---- metrics and summary ----


def metrics_of(config: Config, folders: list[Folder], names: list[str]) -> dict[str, LanguageMetric]:
    """Metric of each split.

    For contexts the loss is the mean over them, so chance is the mean of their logarithms; their bytes say nothing.
    The training loss of data sets with vocabularies of different sizes has no chance that would mean anything.
    """
    logarithms = [math.log(folder.vocab_size) for folder in folders]
    if config.mode == "multicontext":
        mean = sum(logarithms) / len(logarithms)
        return {"train": LanguageMetric(mean, perplexity=False), "validation": LanguageMetric(mean)}
    sets = ["validation"] if config.mode == "single" else names
    metrics = {}
    if len(set(logarithms)) == 1:
        metrics["train"] = LanguageMetric(logarithms[0], perplexity=False)
    for name, chance, folder in zip(sets, logarithms, folders, strict=True):
        split = folder.splits["val"]
        metrics[name] = LanguageMetric(chance, split.tokens / split.text_bytes if split.text_bytes else None)
    return metrics


def summarize(config: Config, folders: list[Folder], names: list[str]) -> list[str]:
    lines = []
    for name, folder in zip(names, folders, strict=True):
        train, val = folder.splits["train"], folder.splits["val"]
        method = f", {folder.method}" if folder.method else ""
        counts = f"{train.tokens:,} training and {val.tokens:,} validation tokens, vocabulary {folder.vocab_size:,}"
        lines.append(f"{name}: {counts} ({train.dtype}{method}), in {folder.path}")
        if folder.source == "GPT-2":
            lines.append(f"{name}: no meta.json, taken to be GPT-2's tokens (dataset.vocab_size sets another size)")
        elif folder.tokenizer_file is None and folder.symbols is None:
            lines.append(f"{name}: no tokenizer.json beside the tokens, so they cannot be shown as text")
    if config.mode == "multicontext":
        lines.append(f"read at the same offsets: {', '.join(names)}")
    if config.mode == "multidataset":
        lines.append(mixture_line(config, names))
    return lines


def mixture_line(config: Config, names: list[str]) -> str:
    """Return `each step on one data set, drawn: a 0.9 -> 0.5, b 0.1 -> 0.5 (linear)`."""
    first, final = config.first_probabilities(), config.sampling_probs_final
    parts = [f"{name} {value:.4g}" for name, value in zip(names, first, strict=True)]
    if final is not None:
        parts = [f"{part} -> {value:.4g}" for part, value in zip(parts, final, strict=True)]
    how = "in turns" if config.interleave else "drawn"
    moved = f" ({config.sampling_transition or 'linear'})" if final is not None else ""
    return f"each step on one data set, {how}: {', '.join(parts)}{moved}"


def processor_of(config: Config, folders: list[Folder]) -> Processor | None:
    """None where there is no tokenizer, or one for each data set."""
    several = config.separate_embeddings or config.mode == "multicontext"
    tokenizer = None if several else tokenizer_of(folders[0])
    return None if tokenizer is None else Processor(tokenizer)


def tokenizer_of(folder: Folder) -> Any:
    """Return the tokenizer of a folder's ids, or None."""
    if folder.symbols is not None:
        from data.text.tokenizers import char_tokenizer

        return char_tokenizer(folder.symbols)
    if folder.tokenizer_file is None:
        return None
    return load_tokenizer(folder.path)
