"""Small data sets of tokens, and the run that reads them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer, models

from loader.resolve.run_config import RunConfig


class Run(SimpleNamespace):
    """What a text data set reads of a run."""

    samples_per_step = RunConfig.samples_per_step


def text_run(folder: Path, seed: int = 0, batch: int = 4, max_steps: int = 100, trainer=None, **changes):
    """What a text data set's `build` takes as its run, caching under `folder`; `changes` are hyper or process keys."""
    process = {"shuffle": True, "tune_batch_size": False, "limit_train_batches": 1.0, "model_name_or_path": None}
    hyper = {"max_steps": max_steps, "num_train_epochs": 3.0, "per_device_train_batch_size": batch}
    assert changes.keys() <= {*process, *hyper}, changes
    return Run(
        seed=seed,
        cache_dir=Path(folder),
        trainer=trainer or {},
        process=SimpleNamespace(**{key: changes.get(key, value) for key, value in process.items()}),
        hyper=SimpleNamespace(**{key: changes.get(key, value) for key, value in hyper.items()}),
    )


def write_split(path: Path, tokens, dtype: str = "uint16", magic: int | None = None, version: int = 1, counted=None):
    """One file of tokens, bare or behind a header of 256 int32."""
    header = np.zeros(256, "<i4")
    header[:3] = magic or 0, version, len(tokens) if counted is None else counted
    content = np.asarray(tokens).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    path.write_bytes((header.tobytes() if magic else b"") + content)


def write_text_folder(
    folder: Path,
    train,
    val=None,
    vocab_size: int = 65,
    dtype: str = "uint16",
    tokenizer: str = "char",
    meta: bool = True,
    text_bytes: int | None = None,
    symbols: dict[str, int] | None = None,
) -> Path:
    """A prepared data set. `train` and `val` are token ids; `symbols` makes a tokenizer.json's vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    val = np.asarray(train)[:200] if val is None else val
    splits = {}
    for name, tokens in (("train", train), ("val", val)):
        write_split(folder / f"{name}.bin", tokens, dtype)
        splits[name] = {"tokens": len(tokens)} | ({"bytes": text_bytes} if text_bytes else {})
    if meta:
        facts = {"version": 1, "vocab_size": vocab_size, "dtype": dtype, "tokenizer": tokenizer, "splits": splits}
        (folder / "meta.json").write_text(json.dumps(facts))
    if symbols is not None:
        Tokenizer(models.WordLevel(symbols, unk_token="?")).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def counting(count: int, vocab_size: int = 60000) -> np.ndarray:
    """Tokens 0, 1, 2 …: each says where it stands, so that a wrong offset never passes for the right one."""
    return np.arange(count) % vocab_size
