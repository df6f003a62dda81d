"""What the environment says of a run: numbers that a launcher sets, and what accelerate would do beside the files."""

from __future__ import annotations

import os
import re

from loader.errors import Problems, shown
from loader.resolve.run_config import RunConfig

WHOLE = re.compile(r"-?\d{1,9}", re.ASCII)
OF_A_LAUNCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
UNSET = ("", "no", "none", "default", "false")  # what launchers set where nothing is asked for


def check_environment(run: RunConfig, problems: Problems) -> None:
    """Numbers that are none, and settings of accelerate's that the training files do not have: run.yaml would not know
    of them, and a resumed run could take another way unseen."""
    for name in OF_A_LAUNCH:
        if (value := os.environ.get(name, "")) and not WHOLE.fullmatch(value):
            problems.add(
                f"`{name}={value}` in the environment is no whole number; unset it, launchers (accelerate launch, "
                "torchrun) set it themselves"
            )
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
    ours = {
        "BACKEND": (backend or "inductor") if compiles else "no",
        "MODE": run.trainer.get("torch_compile_mode") or "default",
    }
    names = (
        ("BACKEND", "MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION") if compiles else ("BACKEND",)
    )
    for name in names:
        setting = _environment_setting(f"ACCELERATE_DYNAMO_{name}")
        if setting and setting != ours.get(name):
            key = {"BACKEND": "torch_compile_backend", "MODE": "torch_compile_mode"}.get(name, "torch_compile")
            value = run.trainer.get(key)
            problems.add(
                f"`ACCELERATE_DYNAMO_{name}={setting}` in the environment (accelerate launch --dynamo_{name.lower()}, "
                f"or its file) is not what the training file says (`{key}: {shown(value)}`{run.place(key)}); "
                f"compile by torch_compile, torch_compile_backend and torch_compile_mode there, and leave it out"
            )
