"""Milliseconds to load a batch of text: one gather a batch against one sample at a time.

    python benchmarks/text_loader.py [--batch_size 64] [--block_size 256] [--tokens 10000000]

Both sides read the same memory-mapped file at random through a torch DataLoader without workers, on one thread. The
usual side is a data set whose samples are cut out one by one and put together by torch's own collate. The two take
turns, and medians are compared, of processor time: on one thread that is the time itself, without the turns of other
programs on a busy machine. Prints one JSON line; `gather_ms` (wanted: at most 0.05 for 64 x 256) is the batch without
the DataLoader around it.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import torch

from data.text import Config, build


class SampleBySample(torch.utils.data.Dataset):
    """The usual way: each sample is cut out of the file by itself."""

    def __init__(self, path: Path, block_size: int):
        self.tokens, self.block_size = np.memmap(path, dtype=np.uint16, mode="r"), block_size

    def __len__(self) -> int:
        return len(self.tokens) - self.block_size

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        window = torch.from_numpy(self.tokens[start : start + self.block_size + 1].astype(np.int64))
        return {"input_ids": window[:-1], "shift_labels": window[1:], "labels": window[:-1]}


def write_data_set(folder: Path, tokens: int, seed: int) -> Path:
    """Random tokens of a vocabulary of GPT-2's size."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for split, count in (("train", tokens), ("val", 100_000)):
        generator.integers(0, 50257, count).astype("<u2").tofile(folder / f"{split}.bin")
    return folder


def bundle_of(paths: list[Path], cache_dir: Path, arguments: argparse.Namespace):
    """What train.py would build of one data set, or of a mixture of several."""
    names = [str(path) for path in paths]
    config = Config(names, "single" if len(names) == 1 else "multidataset", arguments.block_size)
    run = SimpleNamespace(
        seed=0,
        cache_dir=cache_dir,
        trainer={},
        samples_per_step=arguments.batch_size,
        process=SimpleNamespace(shuffle=True, tune_batch_size=False, limit_train_batches=1.0, model_name_or_path=None),
        hyper=SimpleNamespace(max_steps=1000, num_train_epochs=1, per_device_train_batch_size=arguments.batch_size),
    )
    return build(config, run)


def through_loader(dataset, order, collate, arguments: argparse.Namespace) -> float:
    """Milliseconds a batch of a DataLoader."""
    loader = torch.utils.data.DataLoader(
        dataset, arguments.batch_size, sampler=order, collate_fn=collate, drop_last=True
    )
    batches = iter(loader)
    next(batches)
    began = time.process_time()
    done = sum(1 for _ in itertools.islice(batches, arguments.batches))
    return 1e3 * (time.process_time() - began) / done


def gather(bundle, arguments: argparse.Namespace) -> float:
    """Milliseconds a batch of the data set and its collate alone."""
    size, began = arguments.batch_size, time.process_time()
    for number in range(arguments.batches):
        bundle.collate(bundle.train_dataset.__getitems__(list(range(number * size, (number + 1) * size))))
    return 1e3 * (time.process_time() - began) / arguments.batches


def measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, float]:
    paths = [write_data_set(scratch / name, arguments.tokens, seed) for seed, name in enumerate("ab")]
    single, mixed = bundle_of(paths[:1], scratch, arguments), bundle_of(paths, scratch, arguments)
    usual = SampleBySample(paths[0] / "train.bin", arguments.block_size)
    order = torch.randperm(len(usual))[: arguments.batch_size * (arguments.batches + 1)].tolist()
    ways = {
        "gather_ms": lambda: gather(single, arguments),
        "mixture_gather_ms": lambda: gather(mixed, arguments),
        "loader_ms": lambda: through_loader(single.train_dataset, single.sampler(0), single.collate, arguments),
        "sample_by_sample_loader_ms": lambda: through_loader(usual, order, None, arguments),
    }
    times = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            times[name].append(way())
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--block_size", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of the file that is read")
    parser.add_argument("--batches", type=int, default=200, help="of each side and round")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # both sides on one core
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), arguments)
    figures = {name: round(each, 4) for name, each in times.items()}
    ratio = round(times["loader_ms"] / times["sample_by_sample_loader_ms"], 4)
    size = {"batch_size": arguments.batch_size, "block_size": arguments.block_size, "rounds": arguments.rounds}
    print(json.dumps({"benchmark": "text_loader", "ratio": ratio, **figures, **size}))


if __name__ == "__main__":
    main()
