"""How long a save holds up training, against a plain synchronous one of the same state.

    python benchmarks/save_pause.py [--megabytes 128] [--saves 5]

The plain side is what a training loop does by itself: weights with safetensors' save_file, the optimizer with
torch.save, both brought to the disk with fsync, since a save must survive a power cut. `stock_ms` is the same
without fsync, as transformers' Trainer leaves it. Ours is the time from calling the trainer's save until the
next step can begin: a copy to host memory, on a GPU until the device has made it. Writing, hashing, fsync, rename and
the deletion of older checkpoints happen beside the next steps; here they are waited for beyond the measured time, so
that each save starts with nothing under way. The sides take turns; medians are compared. Prints
one JSON line; `ratio` (wanted: at most 0.2) is ours against the plain one.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainingArguments

from trainer.settings import TrainerSettings
from trainer.trainer import Trainer


class Wide(nn.Module):
    """As many megabytes of weights, in matrices of a transformer's size, with hardly any computation."""

    def __init__(self, megabytes: int):
        super().__init__()
        self.layers = nn.ParameterList(torch.randn(1024, 1024) for _ in range(max(1, megabytes // 4)))

    def forward(self, x, **context):
        return {"loss": sum((layer[0] @ x[0]) ** 2 for layer in self.layers) / len(self.layers)}


class Ones(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"x": torch.ones(1024)}


def plain_save(trainer: Trainer, folder: Path, to_disk: bool) -> float:
    """Seconds."""
    folder.mkdir()
    began = time.perf_counter()
    save_file(trainer.model.state_dict(), folder / "model.safetensors")
    torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")
    if to_disk:
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - began


def background_save(trainer: Trainer) -> tuple[float, float]:
    """Seconds that training waits, and seconds until the checkpoint is complete."""
    trainer.state.global_step += 1
    began = time.perf_counter()
    trainer.checkpointing.save()
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize()  # the next step's kernels come after the copies
    paused = time.perf_counter() - began
    trainer.checkpointing.wait_saved()
    written = time.perf_counter() - began
    trainer.checkpointing.deletions.wait()
    return paused, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # The optimizer's two moments make the state three times as large.
    parser.add_argument("--megabytes", type=int, default=128, help="of weights, float32; the state is 3 times as much")
    parser.add_argument("--saves", type=int, default=5, help="of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        root = Path(scratch)
        args = TrainingArguments(
            output_dir=str(root / "out"), max_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), per_device_train_batch_size=1,
        )  # fmt: skip
        trainer = Trainer(
            Wide(arguments.megabytes), args, train_dataset=Ones(), data_collator=torch.utils.data.default_collate,
            settings=TrainerSettings(optimizer_name="AdamW"),
        )  # fmt: skip
        trainer.save_total_limit = trainer.model_checkpoint.limit = 2
        trainer.train()
        background_save(trainer)  # the host's buffers are made once
        plain, stock, ours, whole = [], [], [], []
        for number in range(arguments.saves):
            plain.append(plain_save(trainer, root / f"plain{number}", to_disk=True))
            stock.append(plain_save(trainer, root / f"stock{number}", to_disk=False))
            paused, until = background_save(trainer)
            ours.append(paused)
            whole.append(until)
            for path in (*root.glob("plain*/*"), *root.glob("stock*/*")):
                path.unlink()
        pause = statistics.median(ours)
        print(
            json.dumps(
                {
                    "benchmark": "save_pause",
                    "state_megabytes": 3 * arguments.megabytes,
                    "pause_ms": round(1000 * pause, 1),
                    "plain_ms": round(1000 * statistics.median(plain), 1),
                    "stock_ms": round(1000 * statistics.median(stock), 1),
                    "written_after_ms": round(1000 * statistics.median(whole), 1),
                    "ratio": round(pause / statistics.median(plain), 3),
                    "ratio_to_stock": round(pause / statistics.median(stock), 3),
                }
            )
        )


if __name__ == "__main__":
    main()
