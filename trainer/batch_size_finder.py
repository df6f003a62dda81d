"""Find the largest batch that fits: the size doubles while real training steps succeed; all state is restored."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # accelerate requires it
import torch
import torch.distributed
import transformers
from torch import nn

from trainer.callbacks.throughput import peak_memory
from trainer.serialization import rng_state

STEPS = 2  # the first creates the optimizer's state, the second has it all in memory at once
USABLE = 0.5  # of the free memory: a prediction from peaks is rough, and running out of memory stops the machine
OUT_OF_MEMORY = ("out of memory", "t allocate memory", "ALLOC_FAILED")  # in errors of torch's CPU allocator and cuBLAS


class Trial(NamedTuple):
    """The result of a trial with one batch size."""

    failure: str | None  # None: the batch fits
    fixed_bytes: int = 0  # gradients and optimizer state, which do not grow with the batch


def tune_batch_size(trainer: transformers.Trainer, start: int, maximum: int) -> int:
    """Return the number of samples per device and micro-batch: `start`, doubled while `STEPS` training steps succeed.

    On a GPU a size fails by running out of memory. On a CPU, where that would end the process, the next size is not
    tried if twice the memory of this one's activations would exceed half of the free memory. If `start` does not fit,
    it is halved instead. The size never exceeds `maximum` or the number of samples. Afterwards the model, optimizer,
    gradients, random numbers and the data's order are bit for bit what they were; the caller changes the trainer's
    arguments.

    Args:
        trainer: Has not trained yet; `new_optimizer(model, args)` builds the optimizer of the trials.

    Raises:
        ValueError: the sizes are not in order, the data set has too few samples, or not even one sample fits.
    """
    samples = _samples(trainer, start, maximum)
    bound = min(maximum, samples)
    size, best, reason = min(start, bound), 0, ""
    memory = Memory(trainer.args.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with restored(trainer.model):
        while not best and size:  # until a batch fits
            trial = _try(trainer, size)
            best, reason = (0, trial.failure) if trial.failure else (size, reason)
            size //= 2
        while best and not reason:  # it was the first: larger ones may fit
            if 2 * best > bound:
                reason = f"at most {maximum} were asked for" if bound == maximum else f"the data set has {samples}"
            elif not (reason := memory.limit_exceeded_by_twice(trial.fixed_bytes)):
                trial = _try(trainer, 2 * best)
                best, reason = (best, trial.failure) if trial.failure else (2 * best, "")
    best = _minimum_over_processes(best, trainer.args.device)
    if not best:
        raise ValueError(f"tune_batch_size: not even a batch of one sample fits ({reason}); take a smaller model")
    if trainer.args.process_index == 0:
        print(f"batch size {best} per device, found by trying: {reason}", file=sys.stderr, flush=True)
    return best


def _samples(trainer: transformers.Trainer, start: int, maximum: int) -> int:
    """The number of samples of each process."""
    if not 1 <= start <= maximum:
        raise ValueError(f"tune_batch_size: start {start} and maximum {maximum} need 1 <= start <= maximum")
    count, processes = len(trainer.train_dataset), trainer.args.world_size
    if count < processes:
        raise ValueError(f"tune_batch_size: {count} training samples are too few for {processes} processes")
    return count // processes


def _try(trainer: transformers.Trainer, size: int) -> Trial:
    """Train `STEPS` steps with batches of `size`, and free the memory that they used."""
    try:
        return Trial(None, _train(trainer, size))
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip() or type(error).__name__
        is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_known and not any(words in text for words in OUT_OF_MEMORY):
            raise
        failure = f"out of memory with {size}: {text.splitlines()[0]}"
    finally:
        trainer.model.zero_grad(set_to_none=True)
    gc.collect()  # outside of the handler: the error's traceback held the tensors
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
    return Trial(failure)


def _train(trainer: transformers.Trainer, size: int) -> int:
    """Train without logging; returns the bytes of gradients and optimizer state."""
    model, args = trainer.model, trainer.args
    optimizer = trainer.new_optimizer(model, args)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    fixed = 0
    for step in range(STEPS):
        model.train()
        samples = collate(fetch(trainer.train_dataset, step * size, size))
        (batch,) = trainer.transformed(iter([trainer._prepare_inputs(samples)]))
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, batch)
        loss.backward()
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values()]
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        fixed = sum(value.nbytes for value in [*state, *gradients] if isinstance(value, torch.Tensor))
        optimizer.zero_grad(set_to_none=True)
    if args.device.type == "cuda":
        torch.cuda.synchronize(args.device)
    return fixed


def fetch(dataset: Any, first: int, count: int) -> Any:
    """Fetch `count` samples as a dataloader would, but by plain indices, so that no sampler advances."""
    indices = [index % len(dataset) for index in range(first, first + count)]
    together = getattr(dataset, "__getitems__", None)
    return together(indices) if together else [dataset[index] for index in indices]


def _minimum_over_processes(size: int, device: torch.device) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return size
    minimum = torch.tensor(size, device=device)
    torch.distributed.all_reduce(minimum, torch.distributed.ReduceOp.MIN)
    return int(minimum)


# ---- memory of a CPU ----


class Memory:
    """Predicts from the peaks of the trials so far whether the next fits in this process's share of the memory."""

    def __init__(self, device: torch.device, processes: int):
        self.device = device
        self.is_limited = device.type == "cpu"
        if self.is_limited:
            forget_peak()
            self.before, self.usable = resident_bytes(), USABLE * available_bytes() / processes

    def limit_exceeded_by_twice(self, fixed_bytes: int) -> str:
        """Return why twice the last batch would not fit; empty: it does, or only trying can tell."""
        if not self.is_limited:
            return ""
        taken = peak_memory(self.device) - self.before
        needed = fixed_bytes + 2 * max(0, taken - fixed_bytes)
        if needed <= self.usable:
            return ""
        return f"twice as many would take {needed / 2**20:.0f} MB of the {self.usable / 2**20:.0f} MB that may be used"


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    return psutil.Process().memory_info().rss


def forget_peak() -> None:
    """Reset the peak, so that memory used and freed during preparation does not count; on Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within the control group (container, Slurm job) if there is one."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


# ---- restoring ----


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undo, bit for bit, what is done inside to the model and to the random number generators."""
    restore_model = _keep_model(model)
    try:
        with rng_state.preserved():
            yield
    finally:
        restore_model()


def _keep_model(model: nn.Module) -> Callable[[], None]:
    """Copy trainable weights and buffers to the host, so that the GPU's memory is measured without the copies.

    The attributes of modules are restored, too: training or evaluation mode, and counters of their forward.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tensors = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in [*trained, *model.buffers()]]
    gradients = [(parameter, parameter.grad) for parameter in trained]
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    for parameter in trained:
        parameter.grad = None

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
