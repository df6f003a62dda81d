"""Build the `Bundle` of records: split, tokens, rows, all kept in a cache."""

from __future__ import annotations

import collections
import datetime
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.bundle import Bundle, collate
from data.cache import file_identity, key_of, open_or_build
from data.load_tokenizer import load_tokenizer
from data.records.chat import Encoded, Encoder
from data.records.config import Config
from data.records.dataset import Rows, fill, first_fit, save
from data.records.processor import Processor
from data.records.source import RecordSource, find, hub_splits, read, split_of_hub
from data.samplers import ShuffledSampler
from data.text.tokenizers import vocabulary_size
from metrics.language import LanguageMetric

VERSION = 3  # of the rows in the cache
EVAL_FRACTION = 0.1
NOTES = {
    "truncated": "{:,} records are longer than {size} tokens and lose their end",
    "dropped": "{:,} records have no token to learn (within {size}) and are left out",
    "open": "in {:,} records no special token ends an assistant's turn: the model will not learn to stop there",
    "renamed": "in {:,} records messages of the role `developer` are rendered as `system`, which the template knows",
}


@dataclass(frozen=True)
class Sources:
    """Training and validation records; if there are none of the latter, `fraction` of the former validates."""

    train: RecordSource
    held_out: RecordSource | None
    fraction: float

    @classmethod
    def of(cls, config: Config, cache_dir: Path) -> Sources:
        train, held_out = find(config.path, cache_dir, "dataset.path")
        if config.eval_path is not None:
            whole, part = find(config.eval_path, cache_dir, "dataset.eval_path")
            held_out = part or whole
        elif config.eval_fraction is not None:
            held_out = None
        elif train.hub_id is not None:
            held_out = split_of_hub(train)
        default = EVAL_FRACTION if config.eval_fraction is None else config.eval_fraction
        return cls(train, held_out, 0.0 if held_out else default)


def assemble(config: Config, run) -> Bundle:
    """See `data.records.build`."""
    cache_dir = Path(run.cache_dir)
    tokenizer = tokenizer_of(config, run, cache_dir)
    sources = Sources.of(config, cache_dir)

    def prepare(folder: Path) -> dict:
        encoder = Encoder(tokenizer, config.loss_on, config.text_column)
        return prepare_rows(folder, config, encoder, run.seed, sources)

    key = key_of(description(config, run.seed, tokenizer, sources))
    folder, manifest = open_or_build(cache_dir / "records", key, prepare)
    train_set = Rows(folder, "train")
    # Identifies the rows: saved with every checkpoint, so that a resumed run can see a change.
    rows = {
        name: {key: manifest[name][key] for key in ("records", "rows", "digest")}
        for name in ("train", "val")
        if name in manifest
    }
    return Bundle(
        train_dataset=train_set,
        eval_datasets={"validation": Rows(folder, "val")} if "val" in manifest else {},
        collate=collate,
        sampler=functools.partial(ShuffledSampler, len(train_set)),
        dims={"vocab_size": vocabulary_size(tokenizer), "block_size": config.block_size, "packed": config.packing},
        files={"data.json": {"block_size": config.block_size, **rows}},
        summary=summary(sources, manifest, config),
        metrics={"validation": LanguageMetric()} if "val" in manifest else {},
        units={"tokens": config.block_size},
        processor=Processor(tokenizer, config.text_column),
    )


def tokenizer_of(config: Config, run, cache_dir: Path):
    """Return the configured tokenizer, with the configured chat template.

    Raises:
        ValueError: There is none, or its ids differ from those that the first weights were trained with.
    """
    process, model = run.process, run.process.model_name_or_path
    hub_cache, remote = getattr(process, "cache_dir", None), bool(getattr(process, "trust_remote_code", False))
    tokenizer = load_tokenizer(config.tokenizer or model, cache_dir, hub_cache, remote)
    if config.tokenizer is not None and model is not None:
        try:
            theirs = load_tokenizer(model, cache_dir, hub_cache, remote).get_vocab().items()
        except ValueError:
            theirs = tokenizer.get_vocab().items()  # the model has none, which may be why one is configured
        ours = tokenizer.get_vocab().items()
        if not (ours <= theirs or theirs <= ours):  # one of them may have further tokens
            place, remedy = f"dataset.tokenizer: {config.tokenizer}", "leave dataset.tokenizer out"
            raise ValueError(f"{place} has other ids than the tokenizer of {model}, of the weights; {remedy}")
    if config.chat_template is not None:
        tokenizer.chat_template = template_of(config.chat_template)
    return tokenizer


def template_of(given: str) -> str:
    """Return `dataset.chat_template` as Jinja text: itself, or the content of the file it names."""
    if "{%" in given or "{{" in given:
        return given
    file = Path(given).expanduser()
    if not file.is_file():
        raise ValueError(f"dataset.chat_template: {given} is neither a file nor a Jinja template")
    return file.read_text(encoding="utf-8")


def description(config: Config, seed: int, tokenizer, sources: Sources) -> dict:
    """Return everything that decides the prepared rows."""
    return {
        "version": VERSION,
        "sources": [identity(source) for source in (sources.train, sources.held_out) if source is not None],
        "seed_of_split": seed if sources.fraction else None,
        "eval_fraction": sources.fraction,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        # A template that writes the date renders differently tomorrow: a resumed run keeps the rows it began with.
        "chat_template": tokenizer.chat_template or "",
        **{key: getattr(config, key) for key in ("block_size", "packing", "text_column", "loss_on")},
    }


def identity(source: RecordSource) -> object:
    if source.hub_id is None:
        return [file_identity(file, file.name) for file in source.files]
    return [source.hub_id, source.split, getattr(hub_splits(source.hub_id)[source.split], "_fingerprint", None)]


# ---- preparing ----


def prepare_rows(folder: Path, config: Config, encoder: Encoder, seed: int, sources: Sources) -> dict:
    """Write the rows of each split into `folder`; return its manifest."""
    drawn, counts = encode(encoder, sources.train, config.block_size, seed)
    if sources.held_out is not None:
        others, other_counts = encode(encoder, sources.held_out, config.block_size, seed)
        splits = {"train": [record for _, record in drawn], "val": [record for _, record in others]}
        counts += other_counts
    else:
        splits = split(drawn, sources.fraction, sources.train)
    tokenizer = encoder.tokenizer
    pad = next(number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if number is not None)
    date = datetime.date.today().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None
    manifest = {"counts": counts, "date": date}
    for name, records in splits.items():
        lengths = [len(record.ids) for record in records]
        rows = first_fit(lengths, config.block_size) if config.packing else [[index] for index in range(len(records))]
        arrays = fill(records, rows, config.block_size, pad)
        save(folder, name, arrays)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(arrays[key]) for key in sorted(arrays)))
        manifest[name] = {
            "records": len(records),
            "rows": len(rows),
            "tokens": sum(lengths),
            "learned": int(arrays["learned"].sum()),
            "digest": digest.hexdigest()[:16],
        }
    return manifest


def encode(
    encoder: Encoder, source: RecordSource, block_size: int, seed: int
) -> tuple[list[tuple[float, Encoded]], collections.Counter]:
    """Return (number drawn, tokens) of each record with tokens that carry loss, and counts of what `summary` reports.

    Raises:
        ValueError: A record is malformed, or none has a token that carries loss.
    """
    kept, counts = [], collections.Counter()
    for place, record in read(source):
        encoded = encoder(record, place)
        counts["truncated"] += len(encoded.ids) > block_size
        counts.update(f"unread {key}" for key in encoded.unread)
        counts["renamed"] += encoded.is_renamed
        ids, learned = encoded.ids[:block_size], encoded.learned[:block_size]
        if not learned.any():
            counts["dropped"] += 1
            continue
        counts["open"] += encoded.is_open
        kept.append((draw(record, seed), encoded._replace(ids=ids, learned=learned)))
    if not kept:
        without = f"none of {counts['dropped']} records has a token to learn"
        raise ValueError(f"{source}: {without} within dataset.block_size {block_size}; raise it, or see the records")
    return kept, counts


def draw(record: object, seed: int) -> float:
    """Return a number from 0 to 1 that depends only on the record's content and the seed, not on other records."""
    content = json.dumps(record, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(f"{seed}:{content}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(chosen: list[tuple[float, Encoded]], fraction: float, source: RecordSource) -> dict[str, list[Encoded]]:
    """Return training and validation records by their numbers; at least one validates unless `fraction` is 0."""
    if not fraction:
        return {"train": [record for _, record in chosen]}
    limit = max(fraction, np.nextafter(min(number for number, _ in chosen), 2))
    train = [record for number, record in chosen if number >= limit]
    if not train:
        problem = f"leaves none of the {len(chosen)} records of {source} for training"
        raise ValueError(f"dataset.eval_fraction {fraction:g} {problem}; lower it, or give dataset.eval_path")
    return {"train": train, "val": [record for number, record in chosen if number < limit]}


def summary(sources: Sources, manifest: dict, config: Config) -> list[str]:
    lines, train = [], sources.train
    for split, source, use in (("train", train, "for training"), ("val", sources.held_out or train, "for validation")):
        if split in manifest:
            numbers = manifest[split]
            places = numbers["rows"] * config.block_size
            filled, learned = numbers["tokens"] / places, numbers["learned"] / numbers["tokens"]
            rows = f"{numbers['rows']:,} rows of {config.block_size} tokens ({filled:.0%} filled)"
            lines.append(f"{source}: {numbers['records']:,} records in {rows}, {learned:.0%} of them learned, {use}")
    for source in filter(None, (train, sources.held_out)):
        if source.left_out:
            names = ", ".join(f"{count:,} {ending}" for ending, count in sorted(source.left_out.items()))
            lines.append(f"{source}: files beside the records that are not read: {names}")
    if manifest["date"]:
        lines.append(f"the chat template writes the date: {manifest['date']}, when these rows were made")
    counts = manifest["counts"]
    lines += [text.format(counts[key], size=config.block_size) for key, text in NOTES.items() if counts.get(key)]
    unread = {key.removeprefix("unread "): count for key, count in counts.items() if key.startswith("unread ")}
    if unread:
        keys = ", ".join(f"`{key}` ({count:,})" for key, count in sorted(unread.items()))
        lines.append(f"keys of records that are not used (number of records): {keys}")
    return lines
