"""What a checkpoint holds:

config.json, model.safetensors …      the model as transformers and PEFT read it (EMA weights, if weights are averaged)
optimizer.*  scheduler.json  scaler.json  ema.*   the state of the optimization
rng-0.json                             the state of each rank's random number generators
trainer_state.json  log_interval.json  skipped_steps.json   the state of the training loop
run.yaml and the data's files          the configuration
manifest.json                          size and SHA-256 of all of them, written last
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import json
import platform
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.trainer_callback import ExportableState

from storage import safe_read
from storage.atomic import write_text
from trainer.callbacks.log_files import write_files
from trainer.checkpointing import sharded_optimizer
from trainer.distributed import Consensus
from trainer.serialization import rng_state, state_dict_io

LOG_INTERVAL = "log_interval.json"


@dataclass(frozen=True)
class PendingStepWork:
    """Work still pending for the current step when training was preempted; it is done first on resume.

    It is false if nothing is pending.

    Attributes:
        evaluate: An evaluation, perhaps one that was interrupted.
        save: A checkpoint, after the evaluation or the epoch's end.
        epoch: The end of the epoch.
        stop: The end of training, for another reason than the last step.
        grad_norm, learning_rate: Of the step, for a log line at the epoch's end.
    """

    evaluate: bool = False
    save: bool = False
    epoch: bool = False
    stop: bool = False
    grad_norm: float | None = None
    learning_rate: float | None = None

    def __bool__(self) -> bool:
        return self.evaluate or self.save or self.epoch or self.stop


NOTHING_PENDING = PendingStepWork()


def read_pending_work(checkpoint: Path) -> PendingStepWork:
    """Return the work that is pending in a checkpoint."""
    return PendingStepWork(**_read_log_interval(checkpoint)["pending"])


def step_state(trainer: Any, pending: PendingStepWork) -> dict[str, Any]:
    """Return the content of log_interval.json: sums are averaged over ranks, so all ranks must call this."""
    terms = trainer.train_terms
    names = sorted(terms.sums)
    sums = [trainer._tr_loss, trainer.followed_loss, *(terms.sums[name] for name in names)]
    counts = [torch.as_tensor(terms.counts[name], dtype=torch.float32) for name in names]
    device = trainer.args.device
    values = torch.stack([value.detach().to(device, torch.float32) for value in [*sums, *counts]])
    loss, followed, *rest = trainer._mean_over_processes(values).tolist()
    state = {
        "last_logged": trainer._globalstep_last_logged,
        "loss": loss,
        "followed_loss": followed,
        "followed_steps": int(trainer.followed_steps),
        "terms": {name: [rest[i], rest[len(names) + i]] for i, name in enumerate(names)},
        "norms": [int(trainer.guard.clipped), trainer.guard.steps],
        "skipped": trainer.guard.skipped_since_log,
        "pending": dataclasses.asdict(pending),
    }
    return state_dict_io.split(state)[0]  # a loss may be infinite, which JSON cannot hold


def restore_log_interval(trainer: Any, checkpoint: Path | str) -> None:
    """Restore the sums since the last log line; called after transformers has set its own to zero."""
    state = _read_log_interval(Path(checkpoint))
    device = trainer.args.device
    trainer._globalstep_last_logged = state["last_logged"]
    trainer._tr_loss.fill_(state["loss"])
    # The summary's mean loss (`train_loss`) is of the steps since this start only.
    trainer._total_loss_scalar -= state["loss"]
    trainer.followed_loss.fill_(state["followed_loss"])
    trainer.followed_steps = state["followed_steps"]
    terms = trainer.train_terms
    terms.sums = {name: torch.tensor(total, device=device) for name, (total, _) in state["terms"].items()}
    terms.counts = {name: count for name, (_, count) in state["terms"].items()}
    terms.mark()
    trainer.guard.clipped, trainer.guard.steps = state["norms"]
    trainer.guard.skipped_since_log = state["skipped"]


def _read_log_interval(checkpoint: Path) -> dict[str, Any]:
    return state_dict_io.join(safe_read.read_json(checkpoint / LOG_INTERVAL), {})


PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "peft", "bitsandbytes")


class CheckpointContents:
    """Copies the state of a training, to be written while training continues.

    Args:
        trainer: The Trainer whose state is saved.
        consensus: Gathers the random number states of all ranks.
        copies: Copy all tensors; otherwise the tensors themselves are written, which must not change meanwhile.
    """

    def __init__(self, trainer: Any, consensus: Consensus, copies: bool):
        self.trainer, self.consensus = trainer, consensus
        self.buffers = StagingBuffers() if copies else None

    def snapshot(
        self, final: Path, pending: PendingStepWork, resumable: bool, rng: Mapping[str, Any]
    ) -> Callable[[Path], None]:
        """Copy the current state; return a function that writes it into a folder. All ranks must call this.

        Args:
            final: The checkpoint's final folder.
            pending: Work that is left of this step.
            resumable: Include all state that training needs to continue; otherwise the model only.
            rng: `rng_state.states()` to resume from.
        """
        trainer = self.trainer
        rng_by_rank = self.consensus.gather_to_rank0(rng)
        texts = {LOG_INTERVAL: step_state(trainer, pending)}
        part = self._optimizer_part() if resumable else {}
        weights = None if trainer.is_unsharded else trainer.weights()  # gathered with the help of all ranks
        if not trainer.args.should_save:
            return lambda folder: self._write_states(folder, part)
        if resumable:
            texts |= {rng_state.file_name(rank): state for rank, state in enumerate(rng_by_rank)}
        texts |= trainer.guard.facts()
        states = {name: state_dict_io.split(state) for name, state in (self._states() if resumable else {}).items()}
        states = {name: (plain, self._copy(name, tensors)) for name, (plain, tensors) in states.items()}
        if weights is None:
            weights = self._copy("model", trainer.weights(), trainer.constant_weights())
        averages = None
        if trainer.ema is not None:
            tensors, facts = trainer.ema.state()
            averages = self._copy("ema", tensors), facts
        state = _copied_state(trainer)

        def write(folder: Path) -> None:
            if self.buffers is not None:
                self.buffers.wait()
            trainer.write_model(folder, weights, final)
            self._write_states(folder, part | states)
            if averages is not None:
                trainer.ema.write(folder, *averages)
            trainer_state = json.dumps(dataclasses.asdict(state), indent=2, sort_keys=True) + "\n"
            write_text(folder / "trainer_state.json", trainer_state)
            write_files(folder, texts)

        return write

    def _states(self) -> dict[str, Any]:
        """State dicts of the optimization, by the name of their files."""
        trainer = self.trainer
        states = {"scheduler": trainer.lr_scheduler.state_dict()}
        if trainer.is_unsharded:
            states["optimizer"] = trainer.optimizer.state_dict()
        scaler = getattr(trainer.accelerator, "scaler", None)
        return states if scaler is None else states | {"scaler": scaler.state_dict()}

    def _optimizer_part(self) -> dict[str, Any]:
        """This rank's part of a sharded optimizer state: file name -> (JSON values, tensors)."""
        trainer = self.trainer
        if not trainer.is_fsdp_enabled:
            return {}
        tensors, facts = sharded_optimizer.local_state(trainer.model, trainer.optimizer)
        name = sharded_optimizer.part_name(facts["process"], facts["processes"])
        return {name: (facts, self._copy(name, tensors))}

    def _write_states(self, folder: Path, states: Mapping[str, Any]) -> None:
        if self.buffers is not None:
            self.buffers.wait()
        for name, (plain, tensors) in states.items():
            state_dict_io.write(folder, name, plain, tensors)

    def _copy(self, kind: str, tensors: Mapping[str, Any], constant: frozenset[int] = frozenset()) -> dict[str, Any]:
        return dict(tensors) if self.buffers is None else self.buffers.copy(kind, tensors, constant)

    def manifest_facts(self) -> dict[str, Any]:
        """Return the JSON values that the manifest holds beside the files: batch sizes and versions."""
        args = self.trainer.args
        batch, accumulation = self.trainer._train_batch_size, args.gradient_accumulation_steps
        return {
            "world_size": args.world_size,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": accumulation,
            "global_batch_size": batch * accumulation * args.world_size,
            "versions": package_versions(),
        }


def _copied_state(trainer: Any) -> Any:
    """A copy of the TrainerState, with the state of callbacks that export theirs."""
    state = copy.copy(trainer.state)
    exported: dict[str, list[Any]] = {}  # several callbacks may have one class
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            exported.setdefault(type(callback).__name__, []).append(callback.state())
    for name, states in exported.items():
        trainer.state.stateful_callbacks[name] = states if len(states) > 1 else states[0]
    state.stateful_callbacks = copy.deepcopy(trainer.state.stateful_callbacks)
    state.log_history = list(trainer.state.log_history)  # entries are never changed after they were logged
    return state


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that write a checkpoint; reading them takes milliseconds."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


# ---- copies in host memory ----

ALIGNMENT = 64  # bytes; no element of a tensor is larger


class StagingBuffers:
    """Host buffers that are reused from one save to the next: filling fresh memory is several times slower.

    Copies of CUDA tensors are queued on the current stream, behind the work that it already has: the host continues at
    once, and the device as soon as the copies are made. `wait` must be called before the copies are read.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], torch.Tensor] = {}
        self.events: list[tuple[torch.device, Any]] = []
        self.can_pin = True

    def copy(self, kind: str, tensors: Mapping[str, Any], constant: Collection[int] = ()) -> dict[str, Any]:
        """Return host copies of tensors under the same names, as the tensors are now.

        Args:
            kind: Name of the set of tensors, since a name may occur in several sets. The next call with the same kind
                overwrites the copies.
            tensors: Tensors by name; other values are returned as they are.
            constant: `data_ptr()` of tensors that never change; these are returned as they are.

        Tied weights (names of one tensor) share one copy.
        """
        first_name: dict[Any, str] = {}
        copied_as: dict[str, str] = {}
        values: dict[str, Any] = {}
        for name, value in tensors.items():
            values[name] = value = value.detach() if isinstance(value, torch.Tensor) else value
            if isinstance(value, torch.Tensor) and not (value.numel() and value.data_ptr() in constant):
                memory = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
                copied_as[name] = first_name.setdefault(memory, name)
        sources = {name: values[name] for name in first_name.values()}
        self._allocate(kind, sources)
        for name, source in sources.items():
            _copy(self.buffers[kind, name], source)
        for device in {source.device for source in sources.values() if source.device.type == "cuda"}:
            event = torch.cuda.Event(blocking=True)  # a waiting thread leaves the CPU to others
            event.record(torch.cuda.current_stream(device))
            self.events.append((device, event))
        return {name: self.buffers[kind, copied_as[name]] if name in copied_as else values[name] for name in values}

    def wait(self) -> None:
        """Wait until every copy holds its values. Sets the calling thread's current CUDA device."""
        while self.events:
            device, event = self.events.pop()
            torch.cuda.set_device(device)  # a new thread has device 0, where this rank may have no context
            event.synchronize()

    def _allocate(self, kind: str, sources: Mapping[str, torch.Tensor]) -> None:
        """Allocate the buffers that are missing or have another shape or type."""
        missing = {
            name: source for name, source in sources.items() if not _fits(self.buffers.get((kind, name)), source)
        }
        on_gpu = {name: source for name, source in missing.items() if source.device.type == "cuda" and source.numel()}
        pinned = packed(on_gpu, self._memory)
        for name, source in missing.items():
            buffer = pinned[name] if name in pinned else torch.empty(source.shape, dtype=source.dtype)
            self.buffers[kind, name] = buffer

    def _memory(self, size: int) -> torch.Tensor:
        """Allocate `size` bytes, pinned if possible."""
        if self.can_pin:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                self.can_pin = False
                reason = str(error).partition("\n")[0]
                line = f"{size / 2**20:.0f} MB of host memory could not be pinned ({reason}); saves pause training for "
                tqdm.write(f"{line}longer: give the job more memory", file=sys.stderr)
        return torch.empty(size, dtype=torch.uint8)


def _fits(buffer: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _copy(buffer: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy a tensor; from a GPU only the start of the copy is waited for."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # torch would split a few megabytes among its threads, which wait for one another on busy cores.
        ctypes.memmove(buffer.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.element_size())
    else:
        buffer.copy_(tensor, non_blocking=tensor.device.type == "cuda")


def packed(tensors: Mapping[str, torch.Tensor], allocate: Callable[[int], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return uninitialized host tensors of the same names, shapes and types, placed side by side in a few blocks.

    The sizes of blocks are powers of two: torch rounds each pinned allocation up to one, so that an allocation for each
    tensor could take twice the memory. Each tensor has its own storage object, since safetensors takes tensors of one
    storage for tied weights.

    Args:
        allocate: Size in bytes -> uint8 tensor (size,).
    """
    sizes = {name: -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for name, tensor in tensors.items()}
    remaining, buffers = sum(sizes.values()), {}
    free: list[Any] = []  # the unused end of each block, as a uint8 array
    for name in sorted(sizes, key=sizes.get, reverse=True):
        size, tensor = sizes[name], tensors[name]
        number = next((number for number, block in enumerate(free) if len(block) >= size), len(free))
        if number == len(free):
            largest_within, smallest_around = 1 << (remaining.bit_length() - 1), 1 << (size - 1).bit_length()
            free.append(allocate(max(largest_within, smallest_around)).numpy())
        place, free[number] = free[number][: tensor.nbytes], free[number][size:]
        buffers[name] = torch.from_numpy(place).view(tensor.dtype).view(tensor.shape)
        remaining -= size
    return buffers
