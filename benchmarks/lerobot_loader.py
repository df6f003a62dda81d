"""Samples per second of a LeRobot video data set in training, against lerobot's own loader on the same files.

    python benchmarks/lerobot_loader.py [--episodes 50] [--steps 40] [--batch_size 8] [--oracle VENV]

Writes a data set of 480x640 video (AV1, a key frame every 2, as lerobot writes it) and loads shuffled batches of it in
one process with one thread: lerobot decodes the frames of each sample, Keel reads them from the cache that it made
before training, at the recorded size and at 240x320. lerobot runs in the environment of
tests/oracles/lerobot_oracle.py, with that script's PyAV decoder; without it, its figure is null. Prints one JSON line.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from demonstration_files import frames, run_in, signal

from data.demonstrations import Config, build
from data.demonstrations.lerobot.writer import DatasetWriter, Encoding, EpisodeContent

CHUNK, FPS = 8, 30


def write(folder: Path, episodes: int, steps: int) -> None:
    generator = np.random.default_rng(0)
    writer = DatasetWriter(folder, FPS, None, Encoding())
    for _ in range(episodes):
        signals = {name: signal(generator, steps, 14).astype(np.float32) for name in ("observation.state", "action")}
        pictures = {"observation.images.top": frames(generator, steps, 480, 640)}
        writer.add(EpisodeContent(signals, ["stack the cubes"] * steps, {}, pictures))
    writer.close()


def keel(folder: Path, cache: Path, size: list[int], batch_size: int, batches: int) -> tuple[float, float]:
    """(samples per second, seconds to prepare)."""
    began = time.perf_counter()
    bundle = build(Config(path=str(folder), chunk_size=CHUNK, image_size=size), run_in(cache))
    prepared = time.perf_counter() - began
    loader = iter(
        torch.utils.data.DataLoader(
            bundle.train_dataset, batch_size, sampler=bundle.sampler(0), collate_fn=bundle.collate
        )
    )
    next(loader)
    began = time.perf_counter()
    samples = sum(len(batch["actions"]) for batch in itertools.islice(loader, batches))
    return samples / (time.perf_counter() - began), prepared


def lerobot(folder: Path, venv: Path, batch_size: int, batches: int) -> float | None:
    if not (venv / "bin/python").exists():
        return None
    script = ROOT / "tests/oracles/lerobot_oracle.py"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp(), "OMP_NUM_THREADS": "1"}
    command = [venv / "bin/python", script, "rate", folder, str(batch_size), str(batches)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().rpartition("\n")[2])["samples_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=20, help="of lerobot; Keel loads all of an epoch")
    default = os.environ.get("KEEL_LEROBOT_ORACLE", str(Path(tempfile.gettempdir()) / "lerobot-oracle"))
    parser.add_argument("--oracle", type=Path, default=Path(default))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write(work / "data", asked.episodes, asked.steps)
        theirs = lerobot(work / "data", asked.oracle, asked.batch_size, asked.batches)
        result = {"benchmark": "lerobot_loader", "episodes": asked.episodes, "lerobot_samples_per_second": theirs}
        for size in ([480, 640], [240, 320]):
            every = asked.episodes * asked.steps // asked.batch_size - 1
            ours, seconds = keel(work / "data", work / "cache", size, asked.batch_size, every)
            place = f"keel_{size[0]}x{size[1]}"
            result |= {f"{place}_samples_per_second": round(ours), f"{place}_seconds_to_prepare": round(seconds, 1)}
            result |= {f"{place}_ratio": theirs and round(ours / theirs, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
