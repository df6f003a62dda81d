"""Compare Keel's reading and writing of LeRobot data sets with lerobot 0.4.4 itself, in an environment of its own.

    python tests/oracles/lerobot_oracle.py setup [VENV]     create the environment; installs packages into it alone
    python tests/oracles/lerobot_oracle.py compare [VENV]   both directions; prints one JSON line

VENV is $KEEL_LEROBOT_ORACLE or lerobot-oracle in the folder for temporary files. It sees the packages of the
environment that runs this script (torch, numpy, …). The other commands are what `compare` runs inside VENV.
"""

import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import numpy as np

VERSION = "0.4.4"
PACKAGES = (
    f"lerobot=={VERSION} torchvision==0.28.0 datasets pyarrow pandas av jsonlines draccus==0.10.0 einops diffusers "
    "deepdiff termcolor dill multiprocess aiohttp aiosignal aiohappyeyeballs frozenlist multidict propcache yarl "
    "importlib_metadata orderly-set mergedeep pyyaml-include toml typing-inspect mypy_extensions pyserial cachebox"
).split()
FPS, CHUNK = 30, 8
LENGTHS = (20, 12, 31)
TASKS = ["stack the cubes", "open the drawer"]
SIZE = (96, 128)


def environment() -> Path:
    default = Path(tempfile.gettempdir()) / "lerobot-oracle"
    return Path(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("KEEL_LEROBOT_ORACLE", default))


def setup(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--no-deps", *PACKAGES], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "keel.pth").write_text(sysconfig.get_path("purelib") + "\n")


# Inside the environment


def lerobot_dataset():
    """lerobot's class. torchvision's video reader does not fit this torch, and is not needed."""
    define_operators()
    from lerobot.datasets import video_utils
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    video_utils.decode_video_frames_torchvision = decode
    return LeRobotDataset


def define_operators() -> None:
    """Declare operators of torchvision's compiled part, which does not fit this torch; none of them is called."""
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def decode(video_path, timestamps, tolerance_s, backend="pyav", log_loaded_timestamps=False):
    """What torchvision's reader does for lerobot, with PyAV: frames (N, 3, H, W) float32 in [0, 1]."""
    import av
    import torch

    with av.open(str(video_path)) as container:
        stream = container.streams.video[0]
        container.seek(int(min(timestamps) / stream.time_base), stream=stream)
        frames = []
        for frame in container.decode(stream):
            frames.append((float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24")))
            if frames[-1][0] >= max(timestamps):
                break
    nearest = [min(frames, key=lambda frame: abs(frame[0] - wanted)) for wanted in timestamps]
    assert all(abs(at - wanted) < tolerance_s for (at, _), wanted in zip(nearest, timestamps, strict=True))
    return torch.from_numpy(np.stack([image for _, image in nearest])).permute(0, 3, 1, 2).float() / 255


def opened(folder: str, fps: int):
    windows = {"action": [step / fps for step in range(CHUNK)]}
    return lerobot_dataset()("oracle/data", root=folder, delta_timestamps=windows, video_backend="pyav")


def read(folder: str, target: str) -> None:
    """Dump every sample as lerobot gives it."""
    dataset = opened(folder, json.loads(Path(folder, "meta/info.json").read_text())["fps"])
    samples = [dataset[index] for index in range(len(dataset))]
    keys = ["observation.state", "action", "action_is_pad", "episode_index", "frame_index", *dataset.meta.video_keys]
    arrays = {key: np.stack([sample[key].numpy() for sample in samples]) for key in keys}
    for key in dataset.meta.video_keys:
        arrays[key] = np.rint(arrays[key] * 255).astype(np.uint8)
    texts = {key: np.array([sample[key] for sample in samples]) for key in ("task", "reasoning") if key in samples[0]}
    np.savez(target, lengths=[row["length"] for row in dataset.meta.episodes], **arrays, **texts)


def write(folder: str, target: str) -> None:
    """Write a data set with lerobot, and dump what went in."""
    generator = np.random.default_rng(1)
    features = {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": None},
        "action": {"dtype": "float32", "shape": (5,), "names": None},
        "reasoning": {"dtype": "string", "shape": (1,), "names": None},
        "observation.images.top": {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
    }
    dataset = lerobot_dataset().create("oracle/data", FPS, features, root=folder, use_videos=True, video_backend="pyav")
    given = {key: [] for key in ("observation.state", "action", "observation.images.top", "task", "reasoning")}
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            frame = {
                "observation.state": generator.normal(size=6).astype(np.float32),
                "action": generator.normal(size=5).astype(np.float32),
                "observation.images.top": picture(episode, step),
                "task": TASKS[episode % 2],
                "reasoning": f"reach, then grasp {step}",
            }
            for key, value in frame.items():
                given[key].append(value)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    np.savez(target, lengths=LENGTHS, **{key: np.array(values) for key, values in given.items()})


def rate(folder: str, batch_size: str, batches: str) -> None:
    """Print samples per second of lerobot's loader: shuffled batches, in this process, one thread."""
    import torch

    torch.set_num_threads(1)
    dataset = opened(folder, json.loads(Path(folder, "meta/info.json").read_text())["fps"])
    order = torch.Generator().manual_seed(0)
    loader = iter(torch.utils.data.DataLoader(dataset, int(batch_size), shuffle=True, generator=order))
    next(loader)
    began = time.perf_counter()
    samples = sum(len(batch["action"]) for batch in itertools.islice(loader, int(batches)))
    print(json.dumps({"samples_per_second": samples / (time.perf_counter() - began)}))


def picture(episode: int, step: int) -> np.ndarray:
    """(H, W, 3) uint8: a smooth pattern that moves."""
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    wave = np.sin(rows / 17 + columns / 23 + episode + step / 9)
    return np.stack([wave * 90 + 128, wave * -60 + 120, wave * 30 + 100], axis=-1).astype(np.uint8)


# In Keel's environment


def inside(folder: Path, *words: object, script: str = __file__) -> str:
    """Run a command of a script inside the environment; returns the last line that it prints."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "SVT_LOG": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp()}
    command = [str(folder / "bin/python"), str(Path(script).resolve()), *map(str, words)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def by_keel(folder: Path, cache: Path) -> tuple[dict, np.ndarray]:
    """Every sample and the episodes' lengths as Keel gives them, at the recorded size and in the recorded units."""
    from demonstration_files import everything, run_in

    from data.demonstrations import Config, build

    info = json.loads((folder / "meta/info.json").read_text())
    size = next(feature["shape"][:2] for feature in info["features"].values() if feature["dtype"] == "video")
    identity = {"state": "identity", "action": "identity"}
    config = Config(path=str(folder), chunk_size=CHUNK, normalization=identity, image_size=size)
    dataset = build(config, run_in(cache, use_reasoning="reasoning" in info["features"])).train_dataset
    batch = everything(dataset)
    return {key: v if isinstance(v, list) else v.numpy() for key, v in batch.items()}, dataset.lengths


def differences(theirs: dict, ours: dict, lengths: np.ndarray) -> dict[str, float]:
    """Numbers of samples that differ, and the distance of pixels (of 255), of one data set read by both."""
    cameras = sorted(key for key in theirs if key.startswith("observation.images."))
    pixels = [np.abs(theirs[key].astype(int) - ours["images"][:, k].astype(int)) for k, key in enumerate(cameras)]
    return {
        "samples": len(theirs["action"]),
        "lengths": int((theirs["lengths"] != lengths).sum()),
        "states": int((theirs["observation.state"] != ours["state"]).any(axis=1).sum()),
        "windows": int((theirs["action"] != ours["actions"]).any(axis=(1, 2)).sum()),
        "padding": int((theirs["action_is_pad"] != ours["is_pad"]).any(axis=1).sum()),
        "episodes": int((theirs["episode_index"] != ours["episode"]).sum()),
        "steps": int((theirs["frame_index"] != ours["timestep"]).sum()),
        "tasks": int((theirs["task"] != np.array(ours["instruction"])).sum()),
        "largest_pixel_distance": int(max(distance.max() for distance in pixels)),
    }


def compare(folder: Path) -> dict[str, dict[str, float]]:
    """Both directions; every count of differing samples should be 0."""
    from demonstration_files import write_act_folder

    from data.demonstrations.lerobot.convert import Settings, convert
    from data.demonstrations.lerobot.writer import Encoding

    results = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        written = write_act_folder(work / "act", LENGTHS, cameras={"top": SIZE, "wrist": SIZE})
        originals = np.concatenate([arrays["observations/images/top"] for arrays in written]).transpose(0, 3, 1, 2)
        for codec in ("libsvtav1", "libx264"):
            target = work / f"keel_{codec}"
            convert(work / "act", target, Settings(50.0, TASKS[0], Encoding(codec, 30), "aloha"))
            inside(folder, "read", target, work / "dump.npz")
            theirs = dict(np.load(work / "dump.npz"))
            results[f"written_by_keel_{codec}"] = differences(theirs, *by_keel(target, work / "cache"))
            loss = np.abs(theirs["observation.images.top"].astype(int) - originals).mean()
            results[f"written_by_keel_{codec}"]["mean_loss_of_encoding"] = round(float(loss), 3)
        inside(folder, "write", work / "lerobot", work / "given.npz")
        inside(folder, "read", work / "lerobot", work / "dump.npz")
        ours, lengths = by_keel(work / "lerobot", work / "cache")
        theirs, given = dict(np.load(work / "dump.npz")), dict(np.load(work / "given.npz"))
        results["written_by_lerobot"] = differences(theirs, ours, lengths)
        loss = np.abs(ours["images"][:, 0].astype(int) - given["observation.images.top"].transpose(0, 3, 1, 2)).mean()
        results["written_by_lerobot"] |= {
            "states_given": int((given["observation.state"] != ours["state"]).any(axis=1).sum()),
            "reasoning_given": int((given["reasoning"] != np.array(ours["reasoning"])).sum()),
            "mean_loss_of_encoding": round(float(loss), 3),
        }
    return results


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "setup":
        setup(environment())
    elif command == "compare":
        sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
        print(json.dumps(compare(environment())))
    elif command in ("read", "write", "rate"):
        {"read": read, "write": write, "rate": rate}[command](*sys.argv[2:])
    else:
        raise SystemExit(__doc__)
