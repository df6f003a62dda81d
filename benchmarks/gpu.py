"""A GPT of 124 million weights on a GPU: Keel's Trainer beside a bare loop, compiled and not.

    python benchmarks/gpu.py

12 layers, 12 heads, 768 wide, 1,024 tokens, 50,304 in the vocabulary; bfloat16 autocast, fused AdamW, as large a batch
as the GPU's memory suggests. Takes less than 8 minutes, most of them for compiling. Prints one JSON line: tokens a
second, MFU (of the makers' dense bfloat16 peak), peak memory, and `ratio`, Keel's tokens a second over the bare loop's
(wanted: at least 0.97). `--tiny --device cpu` goes the same way in seconds, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

import torch
from torch import Tensor, nn

from benchmarks.gpt_step import (
    BETAS,
    DECAY,
    LOG_EVERY,
    RATE,
    Clock,
    Setting,
    Watch,
    log,
    network,
    rate,
    text,
    trainer_of,
    whole_batches,
    write_tokens,
)
from trainer.callbacks.throughput import peak_flops
from trainer.optimization.parameter_groups import parameter_groups

GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304}
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 65, "batch_size": 2, "steps": 40}
SAMPLES_BY_GIB = ((70, 32), (38, 16), (22, 8), (0, 4))


def setting_for(device: torch.device, tiny: bool) -> Setting:
    """Sizes, and how many samples of 1,024 tokens fit with room to spare."""
    if tiny:
        return Setting(**TINY)
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return Setting(**GPT2, batch_size=next(samples for least, samples in SAMPLES_BY_GIB if gib >= least), steps=80)


def moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device; from pinned memory the copy does not wait for what is being computed."""
    if device.type == "cuda":
        return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
    return batch


def compiler(device: torch.device) -> str:
    """Inductor; on a CPU, where no speed is of interest, nothing is compiled to machine code, which takes minutes."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def bare_loop(folder: Path, setting: Setting, device: torch.device, compiled: bool) -> list[float]:
    """A hand-written loop."""
    model = network(setting).to(device).train()
    step_model: Any = torch.compile(model, backend=compiler(device)) if compiled else model
    optimizer = torch.optim.AdamW(parameter_groups(model, RATE, DECAY), lr=RATE, betas=BETAS, fused=True)
    parameters, batches = list(model.parameters()), whole_batches(text(folder, setting), setting.batch_size)
    clock, coming = Clock(setting, lambda: wait_for(device)), moved(next(batches), device)
    for step in range(1, setting.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, setting)
        batch = coming
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = step_model(input_ids=batch["input_ids"], shift_labels=batch["shift_labels"])["loss"]
        coming = moved(next(batches), device)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            log(f"step {step}: loss {loss.item():.4f}")
        clock.after(step)
    return clock.times


def keel(folder: Path, setting: Setting, device: torch.device, compiled: bool) -> list[float]:
    """Keel's Trainer with the same settings."""
    on_gpu = device.type == "cuda"
    options = {"use_cpu": not on_gpu, "dataloader_pin_memory": on_gpu, "bf16": True}
    options["torch_compile_backend"] = compiler(device) if compiled else None
    options["accelerator_config"] = {"non_blocking": on_gpu}
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(network(setting), text(folder, setting), setting, output, **options)
        clock = Clock(setting, lambda: wait_for(device))
        trainer.add_callback(Watch(clock))
        trainer.train()
    return clock.times


LOOPS = {"bare": bare_loop, "keel": keel}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(folder: Path, setting: Setting, device: torch.device, compiled: bool, rounds: int) -> dict[str, Any]:
    """Both loops in turn, in another order each round: medians, and the most memory that each took."""
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    memory = dict.fromkeys(LOOPS, 0)
    for turn in range(rounds):
        for name in list(LOOPS)[:: 1 if turn % 2 else -1]:
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            times[name] += LOOPS[name](folder, setting, device, compiled)
            if device.type == "cuda":
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated(device))
    rates = {name: setting.batch_size / statistics.median(each) for name, each in times.items()}
    return {
        **{name: figures(rates[name], memory[name], setting, device) for name in LOOPS},
        "ratio": round(rates["keel"] / rates["bare"], 3),
    }


def figures(samples_per_second: float, memory: int, setting: Setting, device: torch.device) -> dict[str, Any]:
    """Tokens a second, MFU where the GPU's peak is known, and peak memory."""
    with torch.device("meta"):
        flops = network(setting).flops_per_sample()
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "tokens_per_second": round(samples_per_second * setting.block_size),
        "mfu": round(samples_per_second * flops / peak, 4) if peak else None,
        "peak_memory_gib": round(memory / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a network of nothing, to see that the command works")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show what the loops print")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(_refused("no CUDA GPU here; run it on a machine with one, or try it out: --tiny --device cpu"))
    if device.type != "cuda" and not arguments.tiny:
        sys.exit(_refused(f"--device {device}: this network is for a GPU; with --tiny it goes the same way in seconds"))
    setting = setting_for(device, arguments.tiny)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as quiet:
        write_tokens(Path(place), setting.vocab_size, 2**16 if arguments.tiny else 2**24)
        if not arguments.verbose:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for name, compiled in (("compiled", True), ("plain", False)):
            results[name] = measured(Path(place), setting, device, compiled, arguments.rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"benchmark": "gpu", "device": name, "batch_size": setting.batch_size, **results}))


def _refused(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
