"""Measure the speed of a run without slowing it down: figures are read at log lines, where the run waits anyway.

Units: `_ms` milliseconds of one optimizer step, `_mb` mebibytes (2**20 bytes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

# Dense bfloat16 (float16 for Volta and Turing) matrix products in TFLOP/s, from the vendors' data sheets. The first
# name that is part of the device's name counts, so special names come before general ones.
PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100", 125.0),
    ("T4", 65.0),
)


class ThroughputMonitor:
    """Speed, waiting for data, memory and model FLOPs utilization (MFU) between two log lines.

    Evaluation and saving do not count: call `pause` before them and `resume` after them.

    Args:
        device: Trains the model; determines the memory that is measured and the peak.
        flops_per_sample: Floating-point operations for one sample, forward and backward. None: no MFU.
        processes: Number of processes whose samples are counted.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        device: torch.device,
        flops_per_sample: float | None = None,
        processes: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.device, self.clock = device, clock
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name)
        self.share_per_rate = flops_per_sample / (peak * processes) if flops_per_sample and peak else None
        self.began: float | None = None  # set when the loop asks for its first batch
        self.paused_at, self.pauses = 0.0, 0
        self.waited_s = 0.0  # the loop adds the time for which it waits for a batch

    def pause(self) -> None:
        """Begin a pause, which does not count as training. Pauses nest."""
        if not self.pauses:
            self.paused_at = self.clock()
        self.pauses += 1

    def resume(self) -> None:
        """End a pause; measurement continues when all nested pauses have ended."""
        assert self.pauses, "resumed without a pause"
        self.pauses -= 1
        if not self.pauses and self.began is not None:
            self.began += self.clock() - max(self.paused_at, self.began)

    def take(self, steps: int, samples: int) -> dict[str, float]:
        """Return the figures of the `steps` optimizer steps, over `samples` samples of all processes, since the last
        call."""
        now = self.clock()
        if self.began is None or steps < 1 or now <= self.began:
            return {}
        began, waited, self.began, self.waited_s = self.began, self.waited_s, now, 0.0
        rate = samples / (now - began)
        figures = {
            "samples_per_second": round(rate, 2),
            "step_ms": round(1e3 * (now - began) / steps, 3),
            "data_wait_ms": round(1e3 * waited / steps, 3),
            "peak_memory_mb": round(peak_memory(self.device) / 2**20, 1),
        }
        if self.share_per_rate is not None:
            figures["mfu"] = round(rate * self.share_per_rate, 4)
        return figures


def flops_per_sample(model: nn.Module) -> float | None:
    """Return the operations for one sample, forward and backward: the model's attribute or method of this name."""
    flops = getattr(model, "flops_per_sample", None)
    flops = flops() if callable(flops) else flops
    return None if flops is None else float(flops)


def peak_flops(device_name: str) -> float | None:
    """Return the peak FLOP/s of a GPU by its name; None: it is not in the table."""
    return next((1e12 * tflops for name, tflops in PEAK_TFLOPS if name in device_name), None)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, or the resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class TimedSteps(TrainerCallback):
    """Logs `train_step_ms` of every step: forward, backward and update, without the wait for data.

    It waits for the device before and after each step, which slows training down.

    Args:
        log: Called with `{"train_step_ms": …}` at the end of each step.
    """

    def __init__(self, log: Callable[[dict[str, float]], None]):
        self.log, self.began = log, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait_for(args.device)
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait_for(args.device)
        self.log({"train_step_ms": round(1e3 * (time.perf_counter() - self.began), 3)})


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
