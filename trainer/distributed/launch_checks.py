"""Check how the processes of a run were launched, and what accelerate would ignore silently."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from trainer.hf_patches import replace_next_step

DEEPSPEED_LINE = (
    "DeepSpeed makes the updates inside its engine: a step that is not finite reaches the weights; "
    "checkpoints hold the engine's own pickled files beside Keel's: resume only from those that you wrote"
)
# Words in torch's errors about sharded tensors; its NotImplementedErrors are RuntimeErrors too.
DIVISION = re.compile(r"DTensor|shard|placement")


class CannotDivide(ValueError):
    """A setting that does not work with sharded weights."""


def check_launch(args: Any) -> None:
    """Check that processes which were launched together train together, each on one device.

    Raises:
        ValueError: each would train alone, all of them writing the same files; or one would spread each batch over
            several GPUs (`nn.DataParallel`), which makes the batch larger and losses vectors.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs and would share each batch out among them; set CUDA_VISIBLE_DEVICES "
            "to one, or start a process for each with accelerate launch"
        )
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and args.world_size == 1:
        raise ValueError(
            f"{started} processes were started and each would train alone, since no GPU was found; set "
            "ACCELERATE_USE_CPU=true in the environment to train on CPUs together"
        )


def wants_fsdp(args: Any) -> bool:
    """Whether an accelerate configuration or the training file asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or args.fsdp_plugin_args is not None


def check_sharding(accelerator: Any, settings: Any, adapted: Any) -> None:
    """Check that all settings work with sharded weights.

    Raises:
        ValueError: a setting does not; the message says what to do.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    how = "FSDP" if plugin is not None else "DeepSpeed"
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError("FSDP of version 1 is not supported; set `fsdp_version: 2` (scripts/accelerate/fsdp2.yaml)")
    if settings.ema is not None:
        raise ValueError(f"`using_ema` works with whole weights in each process, not with {how}; turn it off")
    if getattr(adapted, "quantization", None):
        raise ValueError(
            f"quantized weights cannot be sharded by {how}; turn `use_quantization` off, or train with ddp.yaml"
        )
    if settings.first_optimizer is not None:
        raise ValueError(f"`load_optimizer` works with whole weights in each process, not with {how}; leave it out")


def explain_first_step(optimizer: Any, name: str) -> None:
    """Turn torch's error about sharded weights in the optimizer's first step into one line.

    The error that passes then is a `CannotDivide`.
    """

    def explained(step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return step(*arguments, **options)
        except (RuntimeError, AssertionError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, torch.OutOfMemoryError) or (text and not DIVISION.search(text)):
                raise
            raise CannotDivide(
                f"optimizer `{name}` cannot train sharded weights ({text[:200] or type(error).__name__}); AdamW, SGD "
                "and Lion can, or train with scripts/accelerate/ddp.yaml"
            ) from error

    replace_next_step(getattr(optimizer, "optimizer", optimizer), explained)


def leave_process_group() -> None:
    """Destroy the process group after a finished run; threads of gloo that still run at exit can abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
