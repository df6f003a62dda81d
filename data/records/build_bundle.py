"""From records to a `Bundle`: split, tokens, rows, all kept in a cache."""

import datetime
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from data.bundle import Bundle
from data.cache import file_identity, key_of, open_or_build
from data.mixing import MixtureSampler
from data.records.chat import Encoded, Encoder
from data.records.config import Config
from data.records.dataset import Rows, collate, save
from data.records.packing import fill, first_fit
from data.records.source import RecordSource, find, hub_splits, read, split_of_hub
from data.records.tokenizer import load_tokenizer
from metrics.language import LanguageMetric

VERSION = 2  # of what is kept in the cache
EVAL_FRACTION = 0.1
SPLITS = ("train", "val")


def assemble(config: Config, run) -> Bundle:
    """See `data.records.build`."""
    cache_dir = Path(run.cache_dir)
    tokenizer = tokenizer_of(config, run, cache_dir)
    train, held_out = sources(config, cache_dir)
    fraction = 0.0 if held_out or config.eval_fraction == 0 else config.eval_fraction or EVAL_FRACTION
    described = description(config, run.seed, tokenizer, train, held_out, fraction)

    def prepare(folder: Path) -> dict:
        encoder = Encoder(tokenizer, config.loss_on, config.text_column)
        return prepare_rows(folder, config, encoder, run.seed, train, held_out, fraction)

    folder, manifest = open_or_build(cache_dir / "records", key_of(described), prepare)
    sets = {"validation": Rows(folder, "val")} if "val" in manifest else {}
    train_set = Rows(folder, "train")
    return Bundle(
        train_dataset=train_set,
        eval_datasets=sets,
        collate=collate,
        sampler=functools.partial(MixtureSampler, [[len(train_set)]], None, False, None),
        dims={"vocab_size": len(tokenizer), "block_size": config.block_size},
        files={"data.json": told_apart(manifest, config)},
        summary=summary(train, held_out, manifest, config),
        metrics={name: LanguageMetric() for name in sets},
        units={"tokens": config.block_size},
        tokenizer=tokenizer,
    )


def tokenizer_of(config: Config, run, cache_dir: Path):
    """The tokenizer that the settings name, with the chat template that they give.

    Raises:
        ValueError: there is none, or it numbers tokens otherwise than the one that the first weights were trained with.
    """
    process, model = run.process, run.process.model_name_or_path
    hub_cache, remote = getattr(process, "cache_dir", None), bool(getattr(process, "trust_remote_code", False))
    tokenizer = load_tokenizer(config.tokenizer or model, cache_dir, hub_cache, remote)
    if config.tokenizer is not None and model is not None:
        try:
            theirs = load_tokenizer(model, cache_dir, hub_cache, remote).get_vocab().items()
        except ValueError:
            theirs = tokenizer.get_vocab().items()  # the model brings none, which may be why one is named
        own = tokenizer.get_vocab().items()
        if not (own <= theirs or theirs <= own):  # one of them may have further tokens
            raise ValueError(
                f"dataset.tokenizer: {config.tokenizer} numbers tokens otherwise than the tokenizer of {model}, whose "
                "weights know only its own; leave dataset.tokenizer out"
            )
    if config.chat_template is not None:
        tokenizer.chat_template = template_of(config.chat_template)
    return tokenizer


def template_of(given: str) -> str:
    """`dataset.chat_template` as Jinja text: itself, or the content of the file it names."""
    if "{%" in given or "{{" in given:
        return given
    file = Path(given).expanduser()
    if not file.is_file():
        raise ValueError(f"dataset.chat_template: {given} is neither a file nor a Jinja template")
    return file.read_text(encoding="utf-8")


def sources(config: Config, cache_dir: Path) -> tuple[RecordSource, RecordSource | None]:
    """Training and held-out records; None: the held-out ones are to be drawn, or there are to be none."""
    train, held_out = find(config.path, cache_dir, "dataset.path")
    if config.eval_path is not None:
        whole, part = find(config.eval_path, cache_dir, "dataset.eval_path")
        return train, part or whole
    if config.eval_fraction is not None:
        return train, None
    return train, split_of_hub(train) if train.hub_id is not None else held_out


def description(
    config: Config, seed: int, tokenizer, train: RecordSource, held_out: RecordSource | None, fraction: float
) -> dict:
    """Everything that decides the prepared rows."""
    return {
        "version": VERSION,
        "sources": [identity(source) for source in (train, held_out) if source is not None],
        "seed_of_split": seed if fraction else None,
        "eval_fraction": fraction,
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


def told_apart(manifest: dict, config: Config) -> dict:
    """What tells these rows from others: saved with every checkpoint, so that a resumed run can see a change."""
    names = [name for name in SPLITS if name in manifest]
    rows = {name: {key: manifest[name][key] for key in ("records", "rows", "digest")} for name in names}
    return {"block_size": config.block_size, **rows}


# ---- preparing ----


def prepare_rows(
    folder: Path,
    config: Config,
    encoder: Encoder,
    seed: int,
    train: RecordSource,
    held_out: RecordSource | None,
    fraction: float,
) -> dict:
    """Writes the rows of each split into `folder`; returns what is to be said of them."""
    chosen, counts = encode(encoder, train, config.block_size, seed)
    if held_out is not None:
        others, other_counts = encode(encoder, held_out, config.block_size, seed)
        splits = {"train": [each for _, each in chosen], "val": [each for _, each in others]}
        counts = {key: counts[key] + other_counts[key] for key in counts}
    else:
        splits = split(chosen, fraction, train)
    tokenizer = encoder.tokenizer
    pad = next(each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if each is not None)
    manifest = {"counts": counts, "date": date_in(tokenizer)}
    for name, records in splits.items():
        lengths = [len(record.ids) for record in records]
        rows = first_fit(lengths, config.block_size) if config.packing else [[index] for index in range(len(records))]
        arrays = fill(records, rows, config.block_size, pad)
        save(folder, name, arrays)
        manifest[name] = {
            "records": len(records),
            "rows": len(rows),
            "tokens": sum(lengths),
            "learned": int(arrays["learned"].sum()),
            "digest": digest_of(arrays),
        }
    return manifest


def date_in(tokenizer) -> str | None:
    """The date that a chat template writes into every record, if it does."""
    return datetime.date.today().isoformat() if "strftime_now" in (tokenizer.chat_template or "") else None


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()[:16]


def encode(
    encoder: Encoder, source: RecordSource, block_size: int, seed: int
) -> tuple[list[tuple[float, Encoded]], dict]:
    """(place in the draw, tokens) of each record that has something to learn, and how many were cut or left out.

    Raises:
        ValueError: a record is malformed, or none has anything to learn.
    """
    kept, counts = [], {"truncated": 0, "dropped": 0, "open": 0}
    for place, record in read(source):
        encoded = encoder(record, place)
        counts["truncated"] += len(encoded.ids) > block_size
        encoded = Encoded(encoded.ids[:block_size], encoded.learned[:block_size], encoded.is_open)
        if not encoded.learned.any():
            counts["dropped"] += 1
            continue
        counts["open"] += encoded.is_open
        kept.append((draw(record, seed), encoded))
    if not kept:
        raise ValueError(
            f"{source}: none of {counts['dropped']} records has a token to learn within dataset.block_size "
            f"{block_size}; raise it, or look at the records"
        )
    return kept, counts


def draw(record: object, seed: int) -> float:
    """A number from 0 to 1 that depends on the record's content and the seed alone: other records may come and go."""
    content = json.dumps(record, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(f"{seed}:{content}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(chosen: list[tuple[float, Encoded]], fraction: float, source: RecordSource) -> dict[str, list[Encoded]]:
    """Training and held-out records by their draw; at least one is held out where any are to be."""
    if not fraction:
        return {"train": [each for _, each in chosen]}
    limit = max(fraction, np.nextafter(min(number for number, _ in chosen), 2))
    train = [each for number, each in chosen if number >= limit]
    if not train:
        raise ValueError(
            f"dataset.eval_fraction {fraction:g} leaves none of the {len(chosen)} records of {source} for training; "
            "lower it, give held-out records as dataset.eval_path, or set it to 0"
        )
    return {"train": train, "val": [each for number, each in chosen if number < limit]}


def summary(train: RecordSource, held_out: RecordSource | None, manifest: dict, config: Config) -> list[str]:
    def summary(name: str, source: RecordSource) -> str:
        found = manifest[name]
        places = found["rows"] * config.block_size
        return (
            f"{source}: {found['records']:,} records in {found['rows']:,} rows of {config.block_size} tokens "
            f"({found['tokens'] / places:.0%} filled), {found['learned'] / found['tokens']:.0%} of their tokens learned"
        )

    lines = [f"{summary('train', train)}, to train"]
    if "val" in manifest:
        lines.append(f"{summary('val', held_out or train)}, held out")
    counts = manifest["counts"]
    if manifest["date"]:
        lines.append(f"the chat template writes the date: {manifest['date']}, when these rows were made")
    if counts["truncated"]:
        lines.append(f"{counts['truncated']:,} records are longer than {config.block_size} tokens and lose their end")
    if counts["dropped"]:
        lines.append(
            f"{counts['dropped']:,} records have no token to learn (within {config.block_size}) and are left out"
        )
    if counts["open"]:
        lines.append(
            f"in {counts['open']:,} records the chat template ends an assistant's turn without a special token: the "
            "model will not learn to stop there"
        )
    return lines
