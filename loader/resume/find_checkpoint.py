"""Find the checkpoint to resume from, verify it, and check whether the run may resume from it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from loader.errors import ConfigError, Problems
from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.resume.compatibility import NEW_RUN, resume_changes
from storage import manifest, safe_read
from storage.checkpoints import CHECKPOINT, checkpoints, step_of

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PICKLES = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin")
OPTIMIZER_PART = re.compile(r"optimizer-\d{5}-of-\d{5}\.json")  # of one process, where each holds its share
ENGINES = re.compile(r"global_step\d+/.*optim_states\.pt")  # DeepSpeed's own, which its engine loads
NEWEST = "newest"  # as auto, but a run without a checkpoint is a mistake
MODEL_ALONE = "holds the model alone (save_only_model)"
NO_WORDS, AUTO_WORDS = ("false", "no", "none"), ("auto", "true", "yes", NEWEST)
AUTO_ELSE = "auto:"  # as auto, but a run without a checkpoint begins from the one that is named behind it


def wants_resume(run: RunConfig) -> bool:
    asked = run.hyper.resume_from_checkpoint
    return asked is not None and str(asked).lower() not in NO_WORDS


def takes_newest(run: RunConfig) -> bool:
    """Whether the run resumes from its newest complete checkpoint, if any, and not from a named one."""
    asked = str(run.hyper.resume_from_checkpoint).lower()
    return asked in AUTO_WORDS or asked.startswith(AUTO_ELSE)


def resume_target(run: RunConfig, deep: bool = False) -> Path | None:
    """The checkpoint to resume from, or None for a new run. `auto` takes the newest complete one, if any.

    Args:
        deep: Read every file of it, see `fault`.
    """
    return chosen(run, deep)[0]


def chosen(run: RunConfig, deep: bool = False) -> tuple[Path | None, dict[Path, str]]:
    """`resume_target`, and of each newer checkpoint that `auto` passes over why it is not taken.

    Raises:
        ValueError: with `deep`, a checkpoint that was named, or any that there must be, is not whole.
    """
    if not wants_resume(run):
        return None, {}
    asked = str(run.hyper.resume_from_checkpoint)
    if not takes_newest(run):
        return _named(run, asked, deep), {}
    passed_over = {}
    for path in reversed(checkpoints(run.checkpoint_dir)):
        reason = no_way_on(path, deep)
        if reason is None:
            return path, passed_over
        if deep and manifest.UNREADABLE in reason:
            raise ValueError(
                f"{path} {reason}; it may be whole all the same: start again when it can be read, or move it away"
            )
        if deep and manifest.OTHER_FORMAT in reason:
            raise ValueError(f"{path} {reason}")
        passed_over[path] = reason
    if asked.lower().startswith(AUTO_ELSE):
        return _named(run, asked[len(AUTO_ELSE) :], deep), passed_over
    if deep and asked.lower() == NEWEST:
        raise ValueError(_nothing_whole(run))
    return None, passed_over


def _named(run: RunConfig, name: str, deep: bool) -> Path:
    named = Path(os.path.expanduser(name))
    if deep and (reason := no_way_on(named, deep)):
        raise ValueError(_unusable(run, named, reason))
    return named


def _unusable(run: RunConfig, named: Path, reason: str) -> str:
    remedy = "" if NEW_RUN in reason else "; name a complete checkpoint-N, or auto to find one"
    return f"`resume_from_checkpoint: {named}`{run.place('resume_from_checkpoint')} {reason}{remedy}"


def _nothing_whole(run: RunConfig) -> str:
    place = run.place("resume_from_checkpoint")
    return (
        f"`resume_from_checkpoint: {NEWEST}`{place}: {run.checkpoint_dir} has no complete checkpoint; name "
        "the folder of a run with checkpoints, or leave it out (init_from resume has the same meaning)"
    )


def fault(checkpoint: Path, deep: bool = False) -> str | None:
    """What a checkpoint lacks to continue exactly (`has no optimizer.json`), or None when it is whole.

    Args:
        deep: Read every file and compare its SHA-256 with the manifest's; otherwise only the small ones.
    """
    try:
        there = {path.name for path in checkpoint.iterdir()}
    except OSError as error:
        return f"{manifest.UNREADABLE}: {error.strerror}"
    pickles = [name for name in PICKLES if name in there]
    if pickles and manifest.NAME not in there:
        return (
            f"keeps its state in pickles ({pickles[0]}), which can run any code and are never loaded: it is of another "
            f"trainer, or of an older version; {NEW_RUN}"
        )
    if reason := manifest.verify(checkpoint, deep) or _incomplete(checkpoint) or _inconsistent(checkpoint):
        return reason
    return None if _holds_more_than_the_model(checkpoint) else MODEL_ALONE


def _holds_more_than_the_model(checkpoint: Path) -> bool:
    return bool(manifest.read(checkpoint).get("resumable", True))


def no_way_on(checkpoint: Path, deep: bool = False) -> str | None:
    """`fault`, but that the model alone is enough where nothing is left to train."""
    reason = fault(checkpoint, deep)
    return None if reason == MODEL_ALONE and finished(checkpoint) else reason


def _incomplete(checkpoint: Path) -> str | None:
    """What a resumed run needs and the manifest does not vouch for."""
    names = manifest.read(checkpoint)["files"].keys()
    if not names & set(WEIGHTS):
        return "has no model weights"
    goes_on = _holds_more_than_the_model(checkpoint)
    needed = ["trainer_state.json", "log_interval.json", "run.yaml"]
    needed += ["scheduler.json", "rng-0.json"] if goes_on else []
    if "adapter_model.safetensors" in names:
        needed += ["adapter_config.json", "adaptation.json"]
    if names & {"ema.json", "ema.safetensors"}:
        needed += ["ema.json", "ema.safetensors"]
    for name in needed:
        if name not in names:
            return f"has no {name}"
    if goes_on and not any(
        name == "optimizer.json" or OPTIMIZER_PART.fullmatch(name) or ENGINES.fullmatch(name) for name in names
    ):
        return "has no optimizer.json"
    return None


def _inconsistent(checkpoint: Path) -> str | None:
    """What no run would have written, and what files that can be read say of one another."""
    try:
        step = safe_read.read_json(checkpoint / "trainer_state.json")["global_step"]
    except (ValueError, KeyError, TypeError):
        return "has a damaged trainer_state.json"
    if CHECKPOINT.fullmatch(checkpoint.name) and step != step_of(checkpoint):
        return f"holds the state of step {step}"
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


def superseded(run: RunConfig, target: Path) -> list[Path]:
    """Checkpoints of a course that a run leaves by going on from one that was named, in its folder or elsewhere."""
    if takes_newest(run):
        return []
    step = json.loads((target / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    return [path for path in checkpoints(run.checkpoint_dir) if step_of(path) > step]


def finished(checkpoint: Path, total_steps: int | None = None) -> bool:
    """Whether the checkpoint stands at the run's last step already.

    Args:
        total_steps: of the run as it is now; None: as it was when it wrote the checkpoint.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    total = state["max_steps"] if total_steps is None else total_steps
    return state["global_step"] >= total > 0


def check_resume(run: RunConfig, problems: Problems) -> None:
    """Problems of resuming: no such checkpoint, a truncated one, or a run that may not resume from it."""
    target, place = resume_target(run), run.place("resume_from_checkpoint")
    if not str(run.hyper.resume_from_checkpoint).strip():
        problems.add(f"`resume_from_checkpoint`{place} is empty; give auto, a checkpoint folder, or leave it out")
    elif target is None:
        if str(run.hyper.resume_from_checkpoint).lower() == NEWEST:
            problems.add(_nothing_whole(run))
    elif not target.is_dir():
        problems.add(f"`resume_from_checkpoint: {target}`{place} is not a checkpoint folder")
    elif reason := no_way_on(target):
        problems.add(_unusable(run, target, reason))
    else:
        for line in resume_changes(run, target).problems:
            problems.add(line)
