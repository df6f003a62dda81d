"""Time of a step of a small GPT: Keel's Trainer against a bare PyTorch loop, and against a loop of nanoGPT's shape.

The setting is nanoGPT's for a CPU: 4 layers, 4 heads, 128 wide, 64 tokens, batches of 12, AdamW with a cosine from 1e-3
to 1e-4; positions are rotary, as in configs/training/gpt_baby_cpu.yaml (`--position learned` has a table, as nanoGPT).
The bare loop trains the same module on the same batches with the same fused optimizer. The third has a module of its
own that returns scores and loss, gathers its batches sample by sample, sets the rate by hand, and uses what nanoGPT has
on a CPU: no fused optimizer, a gradient scaler that does nothing.

Prints one JSON line; `ratio` is Keel's time over the bare loop's (wanted: at most 1.03), `nano_ratio` over the third's
(wanted: at most 1). They take turns, in another order each round; ten steps with their log line are timed at once, and
the medians compared, so that noise affects all equally. On one shared with others, `--cpu_time` with
OMP_NUM_THREADS=1 counts the time that the processor gave. `--n_layer 1 --n_embd 8 --n_head 1` shows what the host does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

import data.text
from data.bundle import Bundle
from models import gpt
from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.parameter_groups import parameter_groups
from trainer.settings import TrainerSettings
from trainer.trainer import Trainer

RATE, LEAST_RATE, DECAY, BETAS, LOG_EVERY = 1e-3, 1e-4, 0.1, (0.9, 0.99), 10


@dataclass(frozen=True)
class Setting:
    """Sizes of a run; the first `skip` steps are not timed.

    Its warm-up is half of it: nanoGPT's 100 steps are more than a short run has.
    """

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    batch_size: int = 12
    steps: int = 160
    skip: int = 20
    vocab_size: int = 65
    position: str = "rope"
    cpu_time: bool = False

    @property
    def warmup(self) -> int:
        return self.steps // 2

    def is_timed(self, step: int) -> bool:
        """Whether the clock is read after a step."""
        return step >= self.skip and step % LOG_EVERY == 0


# ---- data and model ----


def write_tokens(folder: Path, vocab_size: int, count: int = 2**20) -> None:
    """A data set of random tokens, as prepare.py writes one."""
    generator = np.random.default_rng(0)
    splits = {}
    for split, length in (("train", count), ("val", count // 10)):
        generator.integers(0, vocab_size, length, dtype=np.uint16).tofile(folder / f"{split}.bin")
        splits[split] = {"tokens": length, "bytes": length}
    meta = {"version": 1, "vocab_size": vocab_size, "dtype": "uint16", "tokenizer": "random", "source": "benchmark"}
    (folder / "meta.json").write_text(json.dumps({**meta, "splits": splits}), encoding="utf-8")


def text(folder: Path, setting: Setting) -> Bundle:
    """The data set as a run builds it."""
    hyper = SimpleNamespace(max_steps=setting.steps, num_train_epochs=1, per_device_train_batch_size=setting.batch_size)
    process = SimpleNamespace(shuffle=True, tune_batch_size=False, limit_train_batches=1.0, model_name_or_path=None)
    run = SimpleNamespace(
        seed=1, cache_dir=folder, hyper=hyper, process=process, trainer={}, samples_per_step=setting.batch_size
    )
    return data.text.build(data.text.Config(path=str(folder), block_size=setting.block_size), run)


def network(setting: Setting) -> nn.Module:
    """Keel's GPT, the same weights each time."""
    torch.manual_seed(0)
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "position")
    sizes = {key: getattr(setting, key) for key in keys}
    process = SimpleNamespace(model_name_or_path=None, is_pretrained=False, load_pretrain=False, cache_dir=None)
    return gpt.build(gpt.Config(**sizes), process)


def rate(step: int, setting: Setting) -> float:
    """The learning rate of a step: a line up, a cosine down."""
    if step < setting.warmup:
        return RATE * step / setting.warmup
    done = (step - setting.warmup) / (setting.steps - setting.warmup)
    return LEAST_RATE + (RATE - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2


class Clock:
    """Seconds a step, over every few steps.

    Args:
        wait: called before the clock is read, to let a device finish.
    """

    def __init__(self, setting: Setting, wait: Callable[[], Any] = lambda: None):
        self.setting, self.wait, self.before = setting, wait, 0.0
        self.times: list[float] = []

    def after(self, step: int) -> None:
        """Record the end of a step, counted from 1."""
        if self.setting.is_timed(step):
            self.wait()
            now = time.process_time() if self.setting.cpu_time else time.perf_counter()
            if self.before:
                self.times.append((now - self.before) / LOG_EVERY)
            self.before = now


def log(line: str) -> None:
    """Print a line; every loop logs at regular intervals."""
    print(line, file=sys.stderr, flush=True)


# ---- a bare loop ----


def whole_batches(bundle: Bundle, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches without a loader: the sampler's numbers, gathered at once."""
    sampler = bundle.sampler(1)
    numbers: Iterator[int] = iter(sampler)
    while True:
        chosen = [number for _, number in zip(range(batch_size), numbers, strict=False)]
        if len(chosen) < batch_size:
            numbers = iter(sampler)
            continue
        yield bundle.train_dataset.__getitems__(chosen)


def bare_loop(folder: Path, setting: Setting) -> list[float]:
    """A hand-written loop."""
    model = network(setting).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, RATE, DECAY), lr=RATE, betas=BETAS, fused=True)
    factors = [rate(step, setting) / RATE for step in range(setting.steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors.__getitem__)
    parameters, batches = list(model.parameters()), whole_batches(text(folder, setting), setting.batch_size)
    clock = Clock(setting)
    for step in range(1, setting.steps + 1):
        batch = next(batches)
        loss = model(input_ids=batch["input_ids"], shift_labels=batch["shift_labels"])["loss"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            log(f"step {step}: loss {loss.item():.4f}, norm {norm.item():.3f}")
        clock.after(step)
    return clock.times


# ---- a loop of nanoGPT's shape ----


class NanoAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        batch, length, width = x.shape
        parts = self.to_qkv(x).split(self.width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        return self.dropout(self.out(seen.transpose(1, 2).contiguous().view(batch, length, width)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention = NanoAttention(width, heads)
        up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(up, nn.GELU(), down, nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class NanoShape(nn.Module):
    """A GPT as one file would have it: forward gives scores and loss."""

    def __init__(self, setting: Setting):
        super().__init__()
        width = setting.n_embd
        self.tokens, self.places = nn.Embedding(setting.vocab_size, width), nn.Embedding(setting.block_size, width)
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(NanoBlock(width, setting.n_head) for _ in range(setting.n_layer))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, setting.vocab_size, bias=False)
        self.apply(self.start)
        self.tokens.weight = self.head.weight

    def start(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """ids, targets (B, T) -> scores (B, T, V) and the mean loss"""
        x = self.dropout(self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        for block in self.blocks:
            x = block(x)
        scores = self.head(self.norm(x))
        return scores, F.cross_entropy(scores.view(-1, scores.size(-1)), targets.view(-1), ignore_index=-1)


def sample_by_sample(folder: Path, setting: Setting) -> tuple[Tensor, Tensor]:
    """A batch as nanoGPT makes it: the file is memory-mapped again, a slice copied for each sample, then stacked."""
    tokens, length = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r"), setting.block_size
    starts = torch.randint(len(tokens) - length, (setting.batch_size,))
    ids = torch.stack([torch.from_numpy(tokens[i : i + length].astype(np.int64)) for i in starts])
    targets = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
    return ids, targets


def nano_shape(folder: Path, setting: Setting) -> list[float]:
    """A loop of nanoGPT's shape."""
    torch.manual_seed(0)
    model = NanoShape(setting).train()
    groups = [
        [parameter for parameter in model.parameters() if (parameter.dim() >= 2) == decays] for decays in (True, False)
    ]
    groups = [{"params": group, "weight_decay": wd} for group, wd in zip(groups, (DECAY, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ids, targets = sample_by_sample(folder, setting)
    clock, before = Clock(setting), 0.0
    for step in range(1, setting.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, setting)
        _, loss = model(ids, targets)
        ids, targets = sample_by_sample(folder, setting)  # the next batch, while a GPU would be busy
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        if step % LOG_EVERY == 0:
            log(f"iter {step}: loss {loss.item():.4f}, time {1e3 * (now - before):.2f} ms")
        before = now
        clock.after(step)
    return clock.times


# ---- Keel ----


class Watch(TrainerCallback):
    """Calls the clock at each step; it is added last, so that it runs after the log line."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.after(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.clock.after(state.global_step)


def trainer_of(model: nn.Module, bundle: Bundle, setting: Setting, folder: str, **options: Any) -> Trainer:
    """Keel's Trainer as train.py would make it for this setting."""
    args = TrainingArguments(
        output_dir=folder,
        max_steps=setting.steps,
        per_device_train_batch_size=setting.batch_size,
        learning_rate=RATE,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        **options,
    )
    plan = LRSchedulerConfig("cosine", warmup_steps=setting.warmup, min_lr=LEAST_RATE, learning_rate=RATE)
    settings = TrainerSettings(schedule=plan, metrics=bundle.metrics, units=bundle.units)
    return Trainer(
        model,
        args,
        train_dataset=bundle.train_dataset,
        data_collator=bundle.collate,
        sampler=bundle.sampler,
        settings=settings,
    )


def keel(folder: Path, setting: Setting) -> list[float]:
    """Keel's Trainer."""
    with tempfile.TemporaryDirectory() as output:
        options = {"use_cpu": True, "dataloader_pin_memory": False}
        trainer = trainer_of(network(setting), text(folder, setting), setting, output, **options)
        clock = Clock(setting)
        trainer.add_callback(Watch(clock))
        trainer.train()
    return clock.times


LOOPS = {"bare": bare_loop, "keel": keel, "nano": nano_shape}


def setting_of(description: str, defaults: Setting, **more: int) -> tuple[Setting, argparse.Namespace]:
    """The command line: a flag for each size, and those of `more`."""
    parser = argparse.ArgumentParser(description=description)
    sizes = dataclasses.asdict(defaults)
    for name, value in {**sizes, **more}.items():
        how = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--verbose", action="store_true", help="show what the loops print")
    arguments = parser.parse_args()
    return Setting(**{name: getattr(arguments, name) for name in sizes}), arguments


def main() -> None:
    setting, arguments = setting_of(__doc__, Setting(), rounds=6)
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as quiet:
        write_tokens(Path(place), setting.vocab_size)
        if not arguments.verbose:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for turn in range(arguments.rounds):
            for name in list(LOOPS)[:: 1 if turn % 2 else -1]:
                times[name] += LOOPS[name](Path(place), setting)
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(
        json.dumps(
            {
                "benchmark": "gpt_step",
                "threads": torch.get_num_threads(),
                "keel_ms": round(1e3 * medians["keel"], 3),
                "bare_loop_ms": round(1e3 * medians["bare"], 3),
                "nano_loop_ms": round(1e3 * medians["nano"], 3),
                "ratio": round(medians["keel"] / medians["bare"], 3),
                "nano_ratio": round(medians["keel"] / medians["nano"], 3),
                "rounds": arguments.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
