"""Time of `--help` and `--check`, and from process start to the first optimizer step, as whole processes.

Prints one JSON line. Baselines in the same run: `import transformers.Trainer` alone for the first step (wanted: at most
1.2 times it); the two answers are given as a share of the same import, which a trainer cannot do without.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
SMALL = "model.hidden_dim=16 model.num_heads=2 model.feedforward_dim=16 model.encoder_layers=1 dataset.chunk_size=10"


def seconds(words: list[str], **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "episodes"
        write_episodes(data)
        train = [sys.executable, "train.py"]
        one_step = [*train, "--max_steps", "1", "--save_strategy", "no", "--report_to", "none", "--no_do_eval"]
        one_step += ["--set", f"dataset.path={data}", *SMALL.split()]
        commands = {
            "import_trainer": [sys.executable, "-c", "from transformers import Trainer"],
            "help": [*train, "--help"],
            "check": [*train, "--check", "--training_config", "configs/training/act_state.yaml"],
            "first_step": one_step,
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(ROUNDS):
            for name, words in commands.items():
                out = ["--output_dir", f"{folder}/out{round_number}"] if name in ("check", "first_step") else []
                times[name].append(seconds([*words, *out], KEEL_HOME=folder))
    medians = {name: statistics.median(each) for name, each in times.items()}
    result = {f"{name}_s": round(value, 3) for name, value in medians.items()}
    result |= {f"{name}_ratio": round(medians[name] / medians["import_trainer"], 3) for name in list(commands)[1:]}
    print(json.dumps({"benchmark": "startup", **result, "rounds": ROUNDS}))


def write_episodes(folder: Path) -> None:
    """Two short synthetic episodes in ACT's layout with the state task's keys."""
    import h5py
    import numpy as np

    folder.mkdir()
    generator = np.random.default_rng(0)
    sizes = {"action": 14, "observations/qpos": 14, "observations/qvel": 14, "observations/env_state": 7}
    for index in range(2):
        with h5py.File(folder / f"episode_{index}.hdf5", "w") as file:
            for key, size in sizes.items():
                file[key] = generator.normal(size=(40, size))


if __name__ == "__main__":
    main()
