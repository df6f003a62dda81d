"""`train.py --estimate_memory`: the peak memory of one process by part, and what to change if it is too much.

The data is read, the network and the optimizer are built, and two steps are trained, all with fake tensors: nothing of
their size is allocated and no GPU is used.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loader.command_line.entry import process_rank, refusing, run_config
from loader.errors import ConfigError
from loader.resolve.run_config import RunConfig, as_if_launched, batch_line
from models.adapt.optional_imports import hide_kernel_warning
from trainer.hf_patches import defer_peft

# Set by launchers: the process that estimates must not wait for the others.
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
NOT_COUNTED = ("torch_compile", "deepspeed", "use_liger_kernel", "label_smoothing_factor", "neftune_noise_alpha")
# Keys that TrainingArguments would take for a wish to use a GPU.
OF_A_GPU = ("fp16", "tf32", "fsdp", "fsdp_config", "deepspeed", "torch_compile", "torch_compile_backend")
SHARDED_PROCESSES = 8
SECONDS_FOR_REMEDIES = 9.0  # of the processor: then no further change is tried


@dataclass
class Estimate:
    """Bytes of one process.

    Attributes:
        largest, at_peak: part -> bytes at its own maximum, and when the sum was largest.
        phase: of the training step in which it was.
        unknown: part -> why it could not be estimated.
        batch: `8 per device × 2 accumulated = 16`.
    """

    largest: dict[str, int]
    at_peak: dict[str, int]
    phase: str
    parameters: int
    trained: int
    batch: str
    unknown: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.at_peak.values())

    def fits(self, gpu_bytes: int) -> bool:
        return self.total <= gpu_bytes


def estimate_memory(run: RunConfig) -> None:
    """Print the estimate that `run.memory` asks for; of several processes the first does.

    Raises:
        ConfigError: more is needed than `--gpu_memory`, or the run cannot be built.
    """
    request = run.memory
    if process_rank() != 0:
        return
    defer_peft()
    hide_kernel_warning()
    from transformers.utils import logging

    logging.disable_progress_bar()
    changes = []
    with as_if_launched(request.processes), collection(False):  # building a model makes many objects and no garbage
        bundle = refusing(build_bundle, run)
        found = refusing(estimate, run, bundle, request.processes, wants_fsdp(run))
        if request.gpu_bytes is not None and not found.fits(request.gpu_bytes):
            changes = list(remedies(run, bundle, found))
    if request.form == "json":
        values = {"total": found.total, **asdict(found), "changes": {words: each.total for words, each in changes}}
        print(json.dumps(values))
    else:
        print("\n".join(table(found)))
    if request.gpu_bytes is None:
        return
    if found.fits(request.gpu_bytes):
        left = size(request.gpu_bytes - found.total)
        use = "what is not estimated" if found.unknown else "the GPU's context (about 0.5 GiB) and fragmentation"
        if request.form == "table":
            print(f"fits if {left} are enough for {use}")
        return
    if request.form == "table":
        print("\n".join(["", "one change at a time:", *change_lines(changes, request.gpu_bytes)]))
    raise ConfigError(f"{size(found.total)} do not fit --gpu_memory {size(request.gpu_bytes)}")


@contextmanager
def collection(enabled: bool) -> Iterator[None]:
    """Inside, Python collects garbage, or does not."""
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Inside, the garbage collection does not look at what is there already."""
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:  # else what the caller froze would be looked at again, too
            gc.unfreeze()


def build_bundle(run: RunConfig) -> Any:
    """The run's data, which must be there: an estimate records no demonstrations.

    Raises:
        ConfigError: it is not.
    """
    from prepare import build_data, recording_folder, with_prepared_data

    if run.env is not None and getattr(run.dataset.config, "path", "") is None:
        from sim import record

        if record.recorded(run.env.config, recording_folder(run)) is None:
            raise ConfigError(f"no data for {run.task} yet: python prepare.py --task_name {run.hyper.task_name}")
    run = with_prepared_data(run)
    return build_data(run)


def wants_fsdp(run: RunConfig) -> bool:
    """Whether the launcher or the training file asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or bool(run.trainer.get("fsdp"))


@contextmanager
def as_one_process() -> Iterator[None]:
    """Inside, the environment is that of a process that nothing has launched."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def arguments_without_gpu(run: RunConfig) -> Any:
    """The run's TrainingArguments, on the CPU and with the run's precision."""
    from loader.output.training_arguments import training_arguments

    trainer = {name: value for name, value in run.trainer.items() if name not in OF_A_GPU}
    plain = replace(run, trainer=trainer | {"use_cpu": True}, process=replace(run.process, accelerator="cpu"), notes=[])
    with as_one_process():
        args = training_arguments(plain)
        assert args.device.type == "cpu"
    args.bf16, args.fp16 = bool(run.trainer.get("bf16")), bool(run.trainer.get("fp16"))
    return args


def estimate(run: RunConfig, bundle: Any, processes: int, is_sharded: bool) -> Estimate:
    """Estimate the memory of one of `processes` processes; `is_sharded`: FSDP2 divides weights and optimizer state.

    Raises:
        ValueError: data, model or optimizer of the run cannot be built.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from models.adapt.quantize import element_count, resident_tensors
    from trainer import memory_ledger as memory

    args = arguments_without_gpu(run)
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    batch, notes = micro_batch(bundle, args.per_device_train_batch_size)
    is_on_gpu = run.process.accelerator != "cpu" and not run.trainer.get("use_cpu")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, memory.Ledger():
        adapted = build(run, bundle, args, is_sharded and half is not None)
        batch, more = transformed(bundle, memory.fake_copy(mode, batch))
        steps = memory.Steps(
            model=adapted.model,
            weights=[tensor for _, tensor in resident_tensors(adapted.model)],
            loss=loss_of(run, bundle, adapted, half),
            device=memory.OnGpu() if is_on_gpu else nullcontext(),
            batches=[memory.fake_copy(mode, batch) for _ in range(args.gradient_accumulation_steps)],
            optimizer=optimizer_of(run, adapted, args),
            averages=averages_of(run, adapted) if run.process.using_ema and not is_sharded else None,
        )
    with collection(True), frozen_objects():  # a cycle would hold memory
        ledger, optimizer, unknown = attempt(mode, steps)
    if is_sharded:
        largest, at_peak = memory.sharded(ledger, steps, optimizer, processes, half)
    else:
        largest, at_peak = dict(ledger.largest), dict(ledger.at_peak)
        if processes > 1:
            largest[memory.BUCKETS] = at_peak[memory.BUCKETS] = largest[memory.GRADIENTS]
    trained = sum(value.numel() for value in adapted.model.parameters() if value.requires_grad)
    notes += more + [f"`{name}` is not counted" for name in NOT_COUNTED if run.trainer.get(name)]
    if ledger.assumed["forward pass"]:
        notes.append("the network reads values of tensors while it computes; each was taken for 1 or true")
    return Estimate(
        largest, at_peak, ledger.peak_phase, sum(element_count(value) for value in adapted.model.parameters()), trained,
        batch_line(args.per_device_train_batch_size, args.gradient_accumulation_steps, processes), unknown, notes,
    )  # fmt: skip


def attempt(mode: Any, steps: Any) -> tuple[Any, Any, dict[str, str]]:
    """Measure the steps; returns the ledger, the optimizer, and for each part that is unknown the reason.

    Networks and optimizers may come from anywhere, and may fail in any way on tensors without values.
    """
    from trainer import memory_ledger as memory

    unknown: dict[str, str] = {}
    while True:
        ledger = memory.Ledger()
        try:
            with mode, ledger:
                return ledger, memory.measure(steps, ledger, without=unknown), unknown
        except Exception as error:
            part = memory.OPTIMIZER if ledger.phase == "optimizer step" else memory.ACTIVATIONS
            if ledger.phase == "set-up" or part in unknown:
                raise
            unknown[part] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def micro_batch(bundle: Any, count: int) -> tuple[Any, list[str]]:
    """The larger one of two batches of the data, with a line if their sizes differ."""
    from trainer.batch_size_finder import fetch
    from trainer.memory_ledger import nbytes

    data = bundle.train_dataset
    starts = (0, len(data) // 2)
    batches = sorted((bundle.collate(fetch(data, start, count)) for start in starts), key=nbytes)
    least, most = map(nbytes, batches)
    if least == most:
        return batches[-1], []
    return batches[-1], [f"batches differ in size: this one has {size(most)}, another {size(least)}"]


def transformed(bundle: Any, batch: Any) -> tuple[Any, list[str]]:
    """The batch after `train_transform`, with a line if that cannot be computed without values."""
    import torch

    if bundle.train_transform is None:
        return batch, []
    try:
        return bundle.train_transform(batch, torch.Generator()), []
    except Exception as error:  # augmentations compute with values, in many ways
        return batch, [f"the augmentation of batches is not counted ({type(error).__name__}: {str(error)[:80]})"]


def build(run: RunConfig, bundle: Any, args: Any, in_float32: bool) -> Any:
    """The adapted model as the Trainer has it in its first step, in fake tensors.

    Args:
        in_float32: FSDP2 with half precision keeps trained weights in float32.
    """
    from train import build_model
    from trainer.hf_patches import without_first_values
    from trainer.memory_ledger import exchange, from_meta

    with without_first_values(from_meta, exchange):
        adapted = build_model(run, bundle, args)
    if in_float32:
        exchange(adapted.model, lambda value: value.detach().float() if value.requires_grad else value)
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    if getattr(args, name):
        options = getattr(args, f"{name}_kwargs") or None
        getattr(adapted.model, f"{name}_enable")(**{f"{name}_kwargs": options})
    return adapted


def loss_of(run: RunConfig, bundle: Any, adapted: Any, half: Any) -> Callable[[Any], Any]:
    """The function from a batch to its loss, computed as accelerate does in half precision."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32

    from prepare import build_loss
    from trainer.loss_terms import outputs_with_loss

    model, loss = adapted.model, build_loss(run, bundle)
    if half is not None:
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=half)(model.forward))
    return lambda batch: outputs_with_loss(model, batch, loss)["loss"]


def optimizer_of(run: RunConfig, adapted: Any, args: Any) -> Callable[[], Any]:
    """A function that builds the run's optimizer."""
    from functools import partial

    from trainer.optimization.optimizers import build_optimizer

    return partial(
        build_optimizer,
        adapted.model,
        run.hyper.optim,
        run.optimizer_options,
        args=args,
        specs=[*run.param_groups, *adapted.groups],
        parts=adapted.parts,
        layer_decay=run.process.layer_decay,
    )


def averages_of(run: RunConfig, adapted: Any) -> Callable[[], Any]:
    """A function that builds the averaged weights."""
    from trainer.optimization.ema import AveragedWeights
    from trainer.settings import EmaConfig

    spec = run.ema or EmaConfig()
    return lambda: AveragedWeights(adapted.model, spec.decay, spec.warmup, spec.update_every)


# ---- what to change ----


def remedies(run: RunConfig, bundle: Any, found: Estimate) -> Iterator[tuple[str, Estimate]]:
    """(what to add to the command line, estimate with it), single changes: first those that keep the results."""
    request, is_sharded = run.memory, wants_fsdp(run)
    end = time.process_time() + SECONDS_FOR_REMEDIES

    def tried(words: str) -> Estimate | None:
        if time.process_time() > end:
            return None
        try:
            return estimate(run_config([*request.words, *words.split()]), bundle, request.processes, is_sharded)
        except (ValueError, ImportError):  # the change does not suit this model or data, or needs a package
            return None

    batch, steps = run.hyper.per_device_train_batch_size, run.trainer.get("gradient_accumulation_steps") or 1
    first, each = batch, 0.0  # the memory is a linear function of the batch: skip those that it says do not fit
    while batch > 1:
        batch, steps = batch // 2, steps * 2
        if each and batch > 1 and found.total - (first - batch) * each > request.gpu_bytes:
            continue
        words = f"--per_device_train_batch_size {batch} gradient_accumulation_steps={steps}"
        if (result := tried(words)) is None:
            break
        yield words, result
        if result.fits(request.gpu_bytes):
            break
        each = (found.total - result.total) / (first - batch)
    for words in changes_of(run):
        if (result := tried(words)) is not None:
            yield words, result
    if not is_sharded and time.process_time() < end:
        processes = max(request.processes, SHARDED_PROCESSES)
        launch = f"accelerate launch --config_file scripts/accelerate/fsdp2.yaml --num_processes {processes}"
        yield launch, estimate(run, bundle, processes, True)


def changes_of(run: RunConfig) -> list[str]:
    """What may be added to the command line, of which the run has nothing yet."""
    is_half = run.trainer.get("bf16") or run.trainer.get("fp16")
    possible = {
        "gradient_checkpointing=true": not run.trainer.get("gradient_checkpointing"),
        "bf16=true": not is_half,
        "--optim adamw_bnb_8bit": run.hyper.optim.startswith("adamw_torch"),
        "lora_enable=true": not run.process.lora_enable,
        "lora_enable=true use_quantization=true bits=4": not run.process.use_quantization,
    }
    return [words for words, is_new in possible.items() if is_new]


# ---- output ----


def size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def table(found: Estimate) -> list[str]:
    """The estimate as lines: each part at its largest, and at the moment of the peak."""
    lines = [f"memory of one process, {found.batch}", f"  {'part':<18}{'largest':>13}{'at the peak':>15}"]
    parts = sorted(found.largest, key=lambda part: -found.largest[part])
    for part in parts:
        shown = "at least " if part in found.unknown else ""
        lines.append(f"  {part:<18}{size(found.largest[part]):>13}{shown + size(found.at_peak.get(part, 0)):>15}")
    lines.append(f"  {'peak':<18}{'':>13}{size(found.total):>15}  in the {found.phase}")
    lines.append(f"  {found.parameters:,} parameters, {found.trained:,} of them trained")
    lines += [f"  {part} cannot be estimated, the peak is higher: {reason}" for part, reason in found.unknown.items()]
    return lines + [f"  {note}" for note in found.notes]


def change_lines(changes: list[tuple[str, Estimate]], gpu_bytes: int) -> list[str]:
    return [
        f"  {size(each.total):>12}  {'fits' if each.fits(gpu_bytes) else '    '}  {words}" for words, each in changes
    ]
