"""Samples per second of prepared demonstrations against opening, reading and resizing per sample.

    python benchmarks/demonstrations.py [--path FOLDER] [--image_size 240 320] [--batch_size 8]

Without a path it makes episodes of 480x640 frames, plain and gzip-compressed. Both sides run in this process,
on one thread, with the same batch size; the time to prepare the cache is given beside. Prints one JSON line.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PROCESS = SimpleNamespace(
    preload_data=False,
    lazy_preprocess=False,
    episode_first=False,
    skip_mirrored_data=False,
    history_images_length=1,
    image_aspect_ratio="square",
    is_multimodal=True,
    use_reasoning=False,
    use_prev_subtask=False,
    model_name_or_path=None,
)


class OpenReadResize(torch.utils.data.Dataset):
    """The usual way: every sample opens its file, reads its frames, and resizes them."""

    def __init__(self, bundle, files: list[Path], image_keys: list[str]):
        self.index = list(
            itertools.chain(
                *(
                    zip([file] * length, range(length), strict=True)
                    for file, length in zip(files, bundle.train_dataset.lengths, strict=True)
                )
            )
        )
        self.image_keys, self.encoder = image_keys, bundle.train_dataset.encoder
        self.chunk, self.size = (
            bundle.dims["chunk_size"],
            (bundle.dims["image_width"], bundle.dims["image_height"]),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict:
        file, step = self.index[number]
        with h5py.File(file, "r") as root:
            state, actions = root["observations/qpos"][step], root["action"][()][step:][: self.chunk]
            frames = [cv2.resize(root[key][step], self.size, interpolation=cv2.INTER_AREA) for key in self.image_keys]
        padded = np.zeros((self.chunk, actions.shape[1]))
        padded[: len(actions)] = actions
        return {
            "state": torch.from_numpy(self.encoder.state.encode(state)),
            "actions": torch.from_numpy(self.encoder.action.encode(padded)),
            "is_pad": torch.arange(self.chunk) >= len(actions),
            "images": torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(),
        }


def samples_per_second(dataset, batch_size: int, order: list[int], collate) -> float:
    loader = torch.utils.data.DataLoader(dataset, batch_size, sampler=order, collate_fn=collate, drop_last=True)
    samples, start = 0, time.perf_counter()
    for batch in loader:
        samples += len(batch["state"])
    return samples / (time.perf_counter() - start)


def compare(path: Path, cache_dir: Path, arguments: argparse.Namespace) -> dict:
    """Both ways on one folder, taking turns so that noise affects both equally."""
    from data.demonstrations import Config, build

    config = Config(path=str(path), image_size=arguments.image_size, state_keys=["observations/qpos"])
    start = time.perf_counter()
    bundle = build(config, SimpleNamespace(process=PROCESS, seed=0, cache_dir=cache_dir))
    prepared = time.perf_counter() - start
    details = bundle.train_dataset.sources[0].details
    baseline = OpenReadResize(bundle, [path / name for name in details["names"]], details["image_keys"])
    orders = np.random.default_rng(0).integers(len(baseline), size=(arguments.rounds, arguments.samples)).tolist()
    ours, theirs = [], []
    for order in orders:
        ours.append(samples_per_second(bundle.train_dataset, arguments.batch_size, order * 10, bundle.collate))
        theirs.append(samples_per_second(baseline, arguments.batch_size, order, None))
    figures = {
        "samples_per_s": np.median(ours),
        "open_read_resize_samples_per_s": np.median(theirs),
        "ratio": np.median(ours) / np.median(theirs),
        "prepare_s": prepared,
    }
    return {"steps": len(baseline), **{name: round(float(value), 1) for name, value in figures.items()}}


def write_episodes(folder: Path, episodes: int, steps: int, compression: str | None) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from demonstration_files import write_act_folder

    write_act_folder(folder, (steps,) * episodes, cameras={"top": (480, 640)}, compression=compression)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, help="folder of recorded episodes; without it synthetic ones are made")
    parser.add_argument("--image_size", type=int, nargs=2, default=[240, 320], help="[height width] in training")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--samples", type=int, default=256, help="read per round the usual way")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    # On a busy machine, several threads would slow down the per-sample side most.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if arguments.path is not None:
            results = {"recorded": compare(arguments.path, scratch / "cache", arguments)}
        else:
            folders = {
                "plain": write_episodes(scratch / "plain", 5, 200, None),
                "gzip": write_episodes(scratch / "gzip", 5, 200, "gzip"),
            }
            results = {name: compare(folder, scratch / "cache", arguments) for name, folder in folders.items()}
    size = {"image_size": arguments.image_size, "batch_size": arguments.batch_size, "workers": 0}
    ratio = min(result["ratio"] for result in results.values())
    print(json.dumps({"benchmark": "demonstrations", "ratio": ratio, **size, **results}))


if __name__ == "__main__":
    main()
