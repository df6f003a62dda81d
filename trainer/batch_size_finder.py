"""The largest batch that fits, found by trying: the size doubles while real steps succeed, then all is as it was."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
import transformers
from torch import nn

from trainer.callbacks.throughput import peak_memory

STEPS = 2  # the first makes the optimizer's state, the second has it all in memory at once
USABLE = 0.5  # of the memory that is free; a prediction from peaks is rough, and a machine out of memory stops for all


class Trial(NamedTuple):
    """One size, tried."""

    fits: bool
    why: str  # if it does not fit
    fixed_bytes: int  # gradients and optimizer state, which do not grow with the batch


def tune_batch_size(trainer: transformers.Trainer, start: int, maximum: int) -> int:
    """Samples per device and micro-batch: `start` doubled while `STEPS` training steps with it fit, up to `maximum`.

    On a GPU a size fails by running out of memory. On a CPU, where that would end the process, the next size is not
    tried if twice what this one's activations took would exceed half of the free memory. The data set bounds it too.
    If `start` does not fit, it is halved instead. The model, optimizer, gradients, random numbers and the data's order
    are afterwards bit for bit what they were; the trainer's arguments are left for the caller to change.

    Args:
        trainer: Has not trained yet; `new_optimizer(model, args)` makes the optimizer of the trial steps.

    Raises:
        ValueError: the sizes make no sense, the data set has no length, or not even one sample fits.
    """
    samples = _samples(trainer, start, maximum)
    bound = min(maximum, samples)
    size, best, why = min(start, bound), 0, ""
    memory = _Memory(trainer.args.device, _local_processes())
    with restored(trainer.model):
        while True:
            trial = _try(trainer, size)
            if not trial.fits:
                why = trial.why
                if best or size == 1:
                    break
                size //= 2
                continue
            grew, best = best > 0 or not why, size
            if not grew:
                break  # halved until it fitted
            if 2 * size > bound:
                why = f"at most {maximum} were asked for" if bound == maximum else f"the data set has {samples}"
                break
            why = memory.refuses(trial.fixed_bytes) or ""
            if why:
                break
            size *= 2
    best = _least(best, trainer.args.device)
    if not best:
        raise ValueError(f"tune_batch_size: not even a batch of one sample fits ({why}); take a smaller model")
    if trainer.args.process_index == 0:
        print(f"batch size {best} per device, found by trying: {why}", file=sys.stderr, flush=True)
    return best


def _samples(trainer: transformers.Trainer, start: int, maximum: int) -> int:
    """How many samples each process has."""
    if not 1 <= start <= maximum:
        raise ValueError(f"tune_batch_size: start {start} and maximum {maximum} need 1 <= start <= maximum")
    try:
        count = len(trainer.train_dataset)
    except TypeError:
        raise ValueError("tune_batch_size needs a training data set with a length; give the batch size") from None
    samples = count // trainer.args.world_size
    if not samples:
        raise ValueError(
            f"tune_batch_size: {count} training samples are too few for {trainer.args.world_size} processes"
        )
    return samples


def _try(trainer: transformers.Trainer, size: int) -> Trial:
    """Trains `STEPS` steps with batches of `size`. What they leave in memory is let go before this returns."""
    try:
        return Trial(True, "", _train(trainer, size))
    except (torch.OutOfMemoryError, MemoryError) as error:
        why = f"out of memory with {size}: {_first_line(error)}"
    except RuntimeError as error:  # what torch's CPU allocator and cuBLAS raise
        if not any(words in str(error) for words in ("out of memory", "t allocate memory", "ALLOC_FAILED")):
            raise
        why = f"out of memory with {size}: {_first_line(error)}"
    finally:
        trainer.model.zero_grad(set_to_none=True)
    gc.collect()  # out of the handler: the error's traceback held the tensors
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
    return Trial(False, why, 0)


def _train(trainer: transformers.Trainer, size: int) -> int:
    """The steps of a training without its records; returns the bytes of gradients and optimizer state."""
    model, args = trainer.model, trainer.args
    optimizer = trainer.new_optimizer(model, args)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    fixed = 0
    for step in range(STEPS):
        model.train()
        samples = collate(_fetch(trainer.train_dataset, step * size, size))
        (batch,) = trainer.transformed(iter([trainer._prepare_inputs(samples)]))
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, batch)
        loss.backward()
        optimizer.step()
        state = (value for values in optimizer.state.values() for value in values.values())
        gradients = (each.grad for group in optimizer.param_groups for each in group["params"])
        fixed = sum(each.nbytes for each in [*state, *gradients] if isinstance(each, torch.Tensor))
        optimizer.zero_grad(set_to_none=True)
    if args.device.type == "cuda":
        torch.cuda.synchronize(args.device)
    return fixed


def _fetch(dataset: Any, first: int, count: int) -> Any:
    """`count` samples as a loader would fetch them, but by plain numbers, so that no sampler moves."""
    indices = [index % len(dataset) for index in range(first, first + count)]
    together = getattr(dataset, "__getitems__", None)
    return together(indices) if together else [dataset[index] for index in indices]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ---- memory of a CPU ----


class _Memory:
    """Predicts from the peaks of the trials so far whether the next fits in this process's share of the memory."""

    def __init__(self, device: torch.device, processes: int):
        self.device = device
        self.bounded = device.type == "cpu"
        if self.bounded:
            forget_peak()
        self.before = resident_bytes() if self.bounded else 0
        self.usable = USABLE * available_bytes() / processes if self.bounded else 0.0

    def refuses(self, fixed_bytes: int) -> str | None:
        """Why twice the last batch would be too much, or None."""
        if not self.bounded:
            return None
        taken = peak_memory(self.device) - self.before
        needed = fixed_bytes + 2 * max(0, taken - fixed_bytes)
        if needed <= self.usable:
            return None
        return f"twice as many would take {needed / 2**20:.0f} MB of the {self.usable / 2**20:.0f} MB that may be used"


def resident_bytes() -> int:
    """Bytes of memory this process holds now; its peak where the system does not say."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(torch.device("cpu"))


def forget_peak() -> None:
    """Reset the peak, so that memory used and freed during preparation does not count; on Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within the control group (container, Slurm job) if there is one."""
    try:
        import psutil

        free = psutil.virtual_memory().available
    except ImportError:
        meminfo = Path("/proc/meminfo")
        lines = meminfo.read_text().splitlines() if meminfo.exists() else []
        kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        free = 1024 * kilobytes[0] if kilobytes else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _least(size: int, device: torch.device) -> int:
    """The smallest of all processes' sizes: they train in step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return size
    least = torch.tensor(size, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)


# ---- as it was ----


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the model and the random number generators inside is undone, bit for bit."""
    undo = [_keep_random_numbers(), _keep_model(model)]
    try:
        yield
    finally:
        for each in undo:
            each()


def _keep_random_numbers() -> Callable[[], None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def undo() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)

    return undo


def _keep_model(model: nn.Module) -> Callable[[], None]:
    """Trainable weights and buffers are copied to the host, so that the GPU's memory is measured without the copies.

    Modules get back their own attributes too: training or evaluation mode, and counters a forward may keep.
    """
    trained = [each for each in model.parameters() if each.requires_grad]
    tensors = [(each, each.detach().to("cpu", copy=True)) for each in [*trained, *model.buffers()]]
    gradients = [(each, each.grad) for each in trained]
    attributes = [(each, dict(vars(each)), dict(each._buffers)) for each in model.modules()]
    for each, _ in gradients:
        each.grad = None

    @torch.no_grad()
    def undo() -> None:
        for module, values, buffers in attributes:
            vars(module).clear()
            vars(module).update(values)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, value in tensors:
            tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return undo
