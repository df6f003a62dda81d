"""Time of a training step: Keel's Trainer against a bare PyTorch loop, same network, batches, optimizer and clipping.

Prints one JSON line; `ratio` is Keel's time over the bare loop's (wanted: at most 1.03). The two take turns, and the
medians are compared, so that noise affects both equally.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

import torch
from transformers import TrainerCallback, TrainingArguments

from models.act import Config, build
from trainer.optimization.parameter_groups import parameter_groups
from trainer.trainer import Trainer

CHUNK, STATE, ACTION = 100, 21, 14


class Chunks(torch.utils.data.Dataset):
    """Random state and action chunks, gathered a batch at a time."""

    def __init__(self, count: int = 4096):
        generator = torch.Generator().manual_seed(0)
        self.state = torch.randn(count, STATE, generator=generator)
        self.actions = torch.randn(count, CHUNK, ACTION, generator=generator)

    def __len__(self) -> int:
        return len(self.state)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        state, actions = self.state[indices], self.actions[indices]
        return {"state": state, "actions": actions, "is_pad": torch.zeros(actions.shape[:2], dtype=torch.bool)}


def same(batch):
    """The batch as the data set made it."""
    return batch


def network(hidden: int) -> torch.nn.Module:
    """A small ACT, the same weights each time."""
    torch.manual_seed(0)
    sizes = {"state_dim": STATE, "action_dim": ACTION, "chunk_size": CHUNK, "num_images": 0}
    config = Config(
        hidden_dim=hidden,
        num_heads=4,
        feedforward_dim=2 * hidden,
        encoder_layers=1,
        use_cvae=False,
        dropout=0.0,
        image_height=0,
        image_width=0,
        **sizes,
    )
    return build(config, SimpleNamespace(cache_dir=None))


def bare_loop(steps: int, skip: int, batch_size: int, hidden: int, device: torch.device) -> float:
    """Seconds per step of a hand-written loop."""
    model = network(hidden).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-4), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
    loader = torch.utils.data.DataLoader(Chunks(), batch_size=batch_size, shuffle=True, collate_fn=same)
    done, began = 0, 0.0
    while True:
        for batch in loader:
            if done == skip:
                synchronize(device)
                began = time.perf_counter()
            loss = model(**{name: value.to(device) for name, value in batch.items()})["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                synchronize(device)
                return (time.perf_counter() - began) / (steps - skip)


class Clock(TrainerCallback):
    """Records the times of the end of the first `skip` steps and of all steps."""

    def __init__(self, skip: int, device: torch.device):
        self.skip, self.device, self.began, self.ended = skip, device, 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.skip, args.max_steps):
            synchronize(self.device)
            self.began, self.ended = (self.ended, time.perf_counter())


def keel(steps: int, skip: int, batch_size: int, hidden: int, device: torch.device) -> float:
    """Seconds per step of Keel's Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            weight_decay=1e-4,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=50,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
        )
        clock = Clock(skip, device)
        trainer = Trainer(network(hidden), args, train_dataset=Chunks(), data_collator=same)
        trainer.add_callback(clock)
        trainer.train()
    return (clock.ended - clock.began) / (steps - skip)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=128)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times: dict[str, list[float]] = {"bare": [], "keel": []}
    for _ in range(arguments.rounds):
        for name, run in (("bare", bare_loop), ("keel", keel)):
            times[name].append(run(arguments.steps, 20, arguments.batch_size, arguments.hidden, device))
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "device": device.type,
                "keel_ms": round(1e3 * medians["keel"], 3),
                "bare_loop_ms": round(1e3 * medians["bare"], 3),
                "ratio": round(medians["keel"] / medians["bare"], 3),
                "rounds": arguments.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
