"""Which devices a run may use: `accelerator`, `devices` and `strategy`, against how the processes were launched."""

from __future__ import annotations

import os
from typing import Any

from .errors import ConfigError, Problems, did_you_mean
from .global_batch import launched_processes
from .run_config import RunConfig

AS_LAUNCHED = ("auto", -1, "-1")
UNSUPPORTED = ("tpu", "ipu", "hpu")
# Strategy -> what it sets in TrainingArguments.
STRATEGIES: dict[str | None, dict[str, Any]] = {
    None: {},
    "auto": {},
    "ddp": {},
    "ddp_find_unused_parameters_true": {"ddp_find_unused_parameters": True},
    "ddp_find_unused_parameters_false": {"ddp_find_unused_parameters": False},
}
OWN_KEYS = ("fsdp", "deepspeed")


def check_hardware(run: RunConfig, problems: Problems) -> None:
    """What can be said without a GPU: unsupported devices, a number of processes that was not launched."""
    process = run.process
    if process.accelerator in UNSUPPORTED:
        problems.add(
            f"`accelerator: {process.accelerator}`{run.place('accelerator')} is not supported; use cuda or cpu"
        )
    if process.strategy not in STRATEGIES:
        own = next((key for key in OWN_KEYS if str(process.strategy).startswith(key)), None)
        known = [word for word in STRATEGIES if word]
        remedy = f"; set the key `{own}` of TrainingArguments" if own else did_you_mean(str(process.strategy), known)
        remedy = remedy or f"; there are {', '.join(known)}"
        problems.add(f"`strategy: {process.strategy}`{run.place('strategy')} is not available{remedy}")
    asked, place = wanted_processes(process.devices), run.place("devices")
    launched = launched_processes()
    if asked == 0:
        problems.add(f"`devices: {process.devices}`{place} must be a number of processes, -1, auto, or a list of GPUs")
    elif asked is not None and asked != launched:
        problems.add(
            f"`devices: {process.devices}`{place} asks for {asked} process(es), and {launched} was launched; start it "
            f"as accelerate launch --num_processes {asked} train.py …, or leave `devices` out"
        )


def wanted_processes(devices: int | str | list[int]) -> int | None:
    """How many processes `devices` stands for: None leaves it to the launcher, 0 is no valid answer."""
    if devices in AS_LAUNCHED:
        return None
    if isinstance(devices, list):
        return len(devices) if all(each >= 0 for each in devices) else 0
    text = str(devices)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def apply_hardware(run: RunConfig, values: dict[str, Any]) -> list[str]:
    """Puts the choice into the values for TrainingArguments; a line for what this machine cannot honour.

    Must run before the first use of CUDA: it may hide GPUs from this process.
    """
    values |= STRATEGIES.get(run.process.strategy, {})
    asked, devices = run.process.accelerator, run.process.devices
    if asked == "cpu":
        values["use_cpu"] = True
        return []
    if devices not in AS_LAUNCHED and launched_processes() == 1:
        chosen = devices[0] if isinstance(devices, list) else 0
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        if visible and chosen >= len(visible):
            raise ConfigError(
                f"`devices: {devices}`{run.place('devices')} names a GPU that this process does not see "
                f"(CUDA_VISIBLE_DEVICES is {','.join(visible)}); count from 0 within it"
            )
        # One process that sees several GPUs would spread over all of them.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[chosen] if chosen < len(visible) else str(chosen)
    import torch

    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        return [f"accelerator: {asked} is asked for, and there is no CUDA device here; training on the CPU"]
    if asked == "mps" and not torch.backends.mps.is_available():
        return ["accelerator: mps is asked for, and there is none here; training on the CPU"]
    return []
