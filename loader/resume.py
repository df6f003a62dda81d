"""Which checkpoint a run goes on from, whether it is whole, and whether the run is still the one that wrote it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

from .errors import ConfigError, Problems, shown
from .run_config import RunConfig, read_saved
from .tree import leaves

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
NEWEST = "newest"  # as auto, but a run without a checkpoint is a mistake
NO_WORDS, AUTO_WORDS = ("false", "no", "none"), ("auto", "true", "yes", NEWEST)

# What decides where the training goes: changed in mid-run, the result is that of neither configuration.
# fmt: off
TRAJECTORY = (
    "seed", "data_seed", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "learning_rate", "weight_decay", "warmup_steps", "warmup_ratio",
    "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "bf16", "fp16", "dataloader_drop_last", "optimizer", "scheduler",
    "param_groups", "model", "dataset", "episode_first", "is_multimodal", "image_aspect_ratio",
    "skip_mirrored_data", "history_images_length", "min_lr", "lr_decay_iters", "warmup_epochs", "shuffle",
    "limit_train_batches", "weights_dtype", "using_ema", "ema", "freeze_vision_tower", "freeze_backbone", "freeze",
    "tune_mm_mlp_adapter", "lora_enable", "lora_module", "lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_lr",
    "lora_options", "use_quantization", "bits", "double_quant", "quant_type", "model_name_or_path", "load_pretrain",
    "is_pretrained", "early_stopping",
)
NOT_TRAJECTORY = (
    "dataset.path", "model.n_action_steps", "model.temporal_ensemble_coeff", "early_stopping.verbose",
    "early_stopping.log_rank_zero_only",
)
# fmt: on
# A changed key -> the one that changes it on resume.
ON_RESUME = {"learning_rate": "resume_lr", "weight_decay": "resume_weight_decay"}


def checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders in a run's folder, by step, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_step)


def wants_resume(run: RunConfig) -> bool:
    asked = run.hyper.resume_from_checkpoint
    return asked is not None and str(asked).lower() not in NO_WORDS


def resume_target(run: RunConfig) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. `auto` takes the newest whole one, if there is any."""
    if not wants_resume(run):
        return None
    asked = str(run.hyper.resume_from_checkpoint)
    if asked.lower() in AUTO_WORDS:
        return next((path for path in reversed(checkpoints(run.checkpoint_dir)) if fault(path) is None), None)
    return Path(os.path.expanduser(asked))


def skipped(run: RunConfig) -> list[str]:
    """A line for each checkpoint newer than the one that `auto` takes: why it is not taken."""
    target = resume_target(run)
    if str(run.hyper.resume_from_checkpoint).lower() not in AUTO_WORDS:
        return []
    newer = [path for path in checkpoints(run.checkpoint_dir) if target is None or path.name != target.name]
    lines = [f"skipping {path.name}: it {why}" for path in reversed(newer) if (why := fault(path))]
    return lines


def fault(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to continue exactly (`has no optimizer.pt`), or None when it is whole."""
    there = {path.name for path in checkpoint.iterdir()}
    if not there & set(WEIGHTS):
        return "has no model weights"
    needed = ["optimizer.pt", "scheduler.pt", "trainer_state.json", "run.yaml"]
    if "adapter_model.safetensors" in there:
        needed += ["adapter_config.json", "adaptation.json"]
    if there & {"ema.json", "ema.safetensors"}:
        needed += ["ema.json", "ema.safetensors"]
    for name in needed:
        if name not in there:
            return f"has no {name}"
    if not list(checkpoint.glob("rng_state*.pth")):
        return "has no rng_state.pth"
    for path in sorted([*checkpoint.iterdir(), *checkpoint.glob("base/*")]):
        name = str(path.relative_to(checkpoint))
        if path.suffix == ".safetensors" and not _whole_safetensors(path):
            return f"has a truncated {name}"
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"has a truncated {name}"
        if path.suffix == ".json" and not _is_json(path):
            return f"has a damaged {name}"
    return _inconsistent(checkpoint)


def _inconsistent(checkpoint: Path) -> str | None:
    """What files that can be read say of one another."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not {"global_step", "max_steps"} <= state.keys():
        return "has a damaged trainer_state.json"
    if not (checkpoint / "run.yaml").read_bytes().endswith(b"\n...\n"):  # a cut YAML is often still YAML
        return "has a truncated run.yaml"
    try:
        run = read_saved(checkpoint / "run.yaml")
    except (ConfigError, OSError, ValueError):
        return "has a damaged run.yaml"
    if run.model is None or run.dataset is None:
        return "has a damaged run.yaml"
    if run.process.using_ema and not (checkpoint / "ema.json").is_file():
        return "has no ema.json, although its run averaged the weights"
    if run.process.lora_enable and not (checkpoint / "adapter_model.safetensors").is_file():
        return "has no adapter_model.safetensors"
    quantized = run.process.use_quantization and not run.process.lora_enable
    if quantized and not (checkpoint / "quantized.safetensors").is_file():
        return "has no quantized.safetensors"
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def superseded(run: RunConfig, target: Path) -> list[Path]:
    """Checkpoints of a course that a run leaves by going on from an earlier one that was named. (Those that `auto`
    passes over are damaged, and are written anew.)"""
    named = str(run.hyper.resume_from_checkpoint).lower() not in AUTO_WORDS
    inside = target.parent.absolute() == run.checkpoint_dir.absolute() and CHECKPOINT.fullmatch(target.name)
    if not (named and inside):
        return []
    return [path for path in checkpoints(run.checkpoint_dir) if _step(path) > _step(target)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def finished(checkpoint: Path) -> bool:
    """Whether the checkpoint stands at the run's last step already."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"] > 0


def check_resume(run: RunConfig, problems: Problems) -> None:
    """Problems of resuming: no such checkpoint, a torn one, or a run that is no longer the one that wrote it."""
    target, place = resume_target(run), run.place("resume_from_checkpoint")
    if not str(run.hyper.resume_from_checkpoint).strip():
        problems.add(f"`resume_from_checkpoint`{place} is empty; give auto, a checkpoint folder, or leave it out")
    elif target is None:
        if str(run.hyper.resume_from_checkpoint).lower() == NEWEST:
            problems.add(
                f"`resume_from_checkpoint: {NEWEST}`{place}: {run.checkpoint_dir} holds no whole checkpoint to go on "
                "from; name the folder of a run that was saved, or leave it out (init_from resume says the same)"
            )
    elif not target.is_dir():
        problems.add(f"`resume_from_checkpoint: {target}`{place} is not a checkpoint folder")
    elif why := fault(target):
        problems.add(f"`resume_from_checkpoint: {target}`{place} {why}; name a whole checkpoint-N, or auto to find one")
    elif (target / "run.yaml").is_file():
        _same_run(run, target, problems)


def _same_run(run: RunConfig, target: Path, problems: Problems) -> None:
    then, now = _trajectory(read_saved(target / "run.yaml")), _trajectory(run)
    for path in dict.fromkeys([*now, *then]):
        before, after = then.get(path), now.get(path)
        if before != after:
            setting = f"`{path}: {shown(after)}`{run.place(path)}"
            remedy = f"; on resume, {ON_RESUME[path]} changes it" if path in ON_RESUME else ""
            problems.add(
                f"{setting} is not what {target.name} was trained with ({shown(before)}); a run resumes as it was begun"
                f"{remedy}"
            )


def _trajectory(run: RunConfig) -> dict[str, object]:
    return {
        path: node.plain()
        for path, node in leaves(run.tree)
        if path.split(".")[0] in TRAJECTORY and path not in NOT_TRAJECTORY
    }


def _whole_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 10**8 else {}
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        return path.stat().st_size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError):
        return False
