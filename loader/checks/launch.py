"""How a run was launched: its devices, its processes, and what the environment sets, against the configuration."""

from __future__ import annotations

import os
from typing import Any

from loader.errors import ConfigError, Problems, shown
from loader.resolve.run_config import RunConfig, launched_processes
from storage.suggestions import did_you_mean

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
    """Check what needs no GPU: unsupported devices, and `devices` against the number of launched processes."""
    process = run.process
    if process.accelerator in UNSUPPORTED:
        problems.add(
            f"`accelerator: {process.accelerator}`{run.place('accelerator')} is not supported; use cuda or cpu"
        )
    if process.strategy not in STRATEGIES:
        name = next((key for key in OWN_KEYS if str(process.strategy).startswith(key)), None)
        known = [word for word in STRATEGIES if word]
        remedy = f"; set the key `{name}` of TrainingArguments" if name else did_you_mean(str(process.strategy), known)
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
    """Return the number of processes that `devices` asks for; None: any number, 0: the value is invalid."""
    if devices in AS_LAUNCHED:
        return None
    if isinstance(devices, list):
        return len(devices) if all(device >= 0 for device in devices) else 0
    text = str(devices)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def apply_hardware(run: RunConfig, values: dict[str, Any]) -> list[str]:
    """Put the chosen devices into the values for TrainingArguments; returns a line for what this machine cannot do.

    Must run before the first use of CUDA: it may hide GPUs from this process.

    Raises:
        ConfigError: the device cannot compute in the chosen precision.
    """
    import torch

    lines = _choose_device(run, values)
    has_gpu = torch.accelerator.is_available() and not values.get("use_cpu")
    _check_precision(run, has_gpu, torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    is_set = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if launched_processes() > 1 and not has_gpu and not is_set:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        lines.append(f"ACCELERATE_USE_CPU=true is set: there is no GPU, {launched_processes()} processes use the CPU")
    return lines


def _check_precision(run: RunConfig, has_gpu: bool, has_bf16: bool) -> None:
    """Refuse a precision that the device does not have; on a CPU, accelerate would silently train in float32."""
    import torch

    needs = {"fp16": "a GPU, as a CPU has no gradient scaling; set bf16, or leave it out"} if not has_gpu else {}
    if not (has_gpu and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        needs["tf32"] = "an NVIDIA GPU of the Ampere generation or later; leave it out"
    if has_gpu and torch.cuda.is_available() and not has_bf16:
        needs["bf16"] = "a GPU with bfloat16; set fp16, or leave it out"
    problems = [
        f"`{key}: true`{run.place(key)} needs {reason}" for key, reason in needs.items() if run.trainer.get(key) is True
    ]
    if problems:
        raise ConfigError(problems)


def _choose_device(run: RunConfig, values: dict[str, Any]) -> list[str]:
    import torch

    values |= STRATEGIES.get(run.process.strategy, {})
    asked, devices = run.process.accelerator, run.process.devices
    if asked == "cpu":
        values["use_cpu"] = True
        return []
    if isinstance(devices, list) and launched_processes() == 1:
        # TrainingArguments uses the first visible GPU: make the chosen one the first.
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(run, os.environ.get("CUDA_VISIBLE_DEVICES"), devices[0])
    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        return [f"accelerator: {asked} is asked for, and there is no CUDA device here; training on the CPU"]
    if asked == "mps" and not torch.backends.mps.is_available():
        return ["accelerator: mps is asked for, and there is none here; training on the CPU"]
    return []


def _visible(run: RunConfig, names: str | None, chosen: int) -> str:
    """Return the chosen one of the visible GPUs (numbers, UUIDs, names of MIG instances; None: all)."""
    if names is None:
        return str(chosen)
    visible = [part.strip() for part in names.split(",") if part.strip()]
    if chosen >= len(visible):
        raise ConfigError(
            f"`devices: [{chosen}]`{run.place('devices')} names a GPU that this process does not see "
            f"(CUDA_VISIBLE_DEVICES is `{names}`); count from 0 within it"
        )
    return visible[chosen]


def idle_gpu_lines(run: RunConfig, visible: int) -> list[str]:
    """Return a line about GPUs that stay idle with one process, unless the user chose the devices."""
    if visible <= 1 or run.process.devices not in AS_LAUNCHED:
        return []
    return [f"{visible} GPUs are visible, one process uses the first; start with accelerate launch to use all"]


UNSET = ("", "no", "none", "default", "false")  # what launchers set where nothing is asked for


def check_environment(run: RunConfig, problems: Problems) -> None:
    """Check that what accelerate's launcher sets agrees with the configuration.

    A setting that stood only in the environment would be missing from run.yaml, and could differ in a resumed run.
    """
    _precision(run, problems)
    _compilation(run, problems)


def _environment_setting(name: str) -> str:
    value = os.environ.get(name, "").strip().lower()
    return "" if value in UNSET else value


def _precision(run: RunConfig, problems: Problems) -> None:
    setting = _environment_setting("ACCELERATE_MIXED_PRECISION")
    ours = next((key for key in ("fp16", "bf16") if run.trainer.get(key)), "no")
    if setting and setting != ours:
        remedy = f"set `{setting}: true`" if setting in ("bf16", "fp16") else "set bf16 or fp16"
        problems.add(
            f"`ACCELERATE_MIXED_PRECISION={setting}` in the environment (accelerate launch --mixed_precision, or its "
            f"file), and the training file says {ours}{run.place(ours)}; {remedy} there, or launch with "
            "--mixed_precision no"
        )


def _compilation(run: RunConfig, problems: Problems) -> None:
    backend = run.trainer.get("torch_compile_backend")
    compiles = bool(run.trainer.get("torch_compile") or backend or run.trainer.get("torch_compile_mode"))
    setting = _environment_setting("ACCELERATE_DYNAMO_BACKEND")
    if setting and setting != ((backend or "inductor") if compiles else "no"):
        problems.add(
            f"`ACCELERATE_DYNAMO_BACKEND={setting}` in the environment (accelerate launch --dynamo_backend, or its "
            f"file) differs from the training file (`torch_compile_backend: {shown(backend)}`"
            f"{run.place('torch_compile_backend')}); set torch_compile and torch_compile_backend there, leave it out"
        )
