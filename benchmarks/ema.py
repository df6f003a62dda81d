"""What the averaged weights cost: time of Keel's training step with EMA against one without, in one run.

Prints one JSON line with a small network and one of about 20 million weights; `ratio` is the step with an update of the
averages in it over the step without (wanted: at most 1.03). Blocks of steps with and without take turns within a run;
each is compared with its neighbour and the median taken, so that noise affects both equally. `update_share`,
the update's own time over the plain step's, is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

import torch
from transformers import TrainerCallback, TrainingArguments

from benchmarks.train_step import Chunks, network, same, synchronize
from trainer.optimization.ema import AveragedWeights
from trainer.trainer import Trainer

BLOCK = 4  # steps; the first of each is not counted, since it finds the other kind's data in the caches


class TakingTurns(TrainerCallback):
    """Updates the averages in every second block, and times each step."""

    def __init__(self, skip: int, device: torch.device):
        self.skip, self.device, self.ema, self.began = skip, device, None, 0.0
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.updates: list[float] = []

    def averages(self, step: int) -> bool:
        return step // BLOCK % 2 == 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.ema = AveragedWeights(model, decay=0.999, warmup=True, update_every=1)

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize(self.device)
        self.began = time.perf_counter()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.averages(state.global_step):
            synchronize(self.device)
            began = time.perf_counter()
            self.ema.update(state.global_step + 1)
            synchronize(self.device)
            self.updates.append(time.perf_counter() - began)

    def on_step_end(self, args, state, control, **kwargs):
        synchronize(self.device)
        step = state.global_step - 1
        if step >= self.skip and step % BLOCK:
            self.times[self.averages(step)].append(time.perf_counter() - self.began)


def measure(steps: int, batch_size: int, hidden: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a step without and with the averages, and what follows from them."""
    model = network(hidden)
    turns = TakingTurns(2 * BLOCK, device)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=steps + turns.skip,
            per_device_train_batch_size=batch_size,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, args, train_dataset=Chunks(), data_collator=same)
        trainer.add_callback(turns)
        trainer.train()
    timed = (turns.times[False], turns.times[True], turns.updates)
    plain, averaged, update = (1e3 * statistics.median(each) for each in timed)
    blocks = [[sum(each[first : first + BLOCK - 1]) for first in range(0, len(each), BLOCK - 1)] for each in timed[:2]]
    ratio = statistics.median(one / other for other, one in zip(*blocks, strict=True))
    return {
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "batch_size": batch_size,
        "plain_ms": round(plain, 3),
        "ema_ms": round(averaged, 3),
        "ratio": round(ratio, 3),
        "update_share": round(update / plain, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of the small network; the large one trains a tenth")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    arguments.steps -= arguments.steps % (
        20 * BLOCK
    )  # as many blocks of the one kind as of the other, in both networks
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = {"small": (arguments.steps, 128), "large": (arguments.steps // 10, 960)}
    results = {name: measure(steps, arguments.batch_size, hidden, device) for name, (steps, hidden) in sizes.items()}
    print(json.dumps({"benchmark": "ema", "device": device.type, **results}))


if __name__ == "__main__":
    main()
