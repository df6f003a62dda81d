"""Find the checkpoint to resume from, verify it and describe it once, as a `ResumePoint` that everything else receives.

Each process of a launch does so before torch is imported, hashing only small files. Rank 0 hashes the large ones when
the run's folders are locked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loader.errors import ConfigError
from loader.resolve.resolver import read_saved
from loader.resolve.run_config import ACCUMULATED, AUTO_ELSE, NEWEST, PER_DEVICE, RunConfig
from storage import manifest, safe_read
from storage.checkpoints import CHECKPOINT, checkpoints, recover, set_aside, step_of

NEW_RUN = "begin a new run from its weights (model_name_or_path with is_pretrained or load_pretrain)"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PICKLES = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin")
# The state of an optimizer: of one process, of one of several, of DeepSpeed's engine.
OPTIMIZER_STATE = re.compile(r"optimizer(-\d{5}-of-\d{5})?\.json|global_step\d+/.*optim_states\.pt")
END_OF_YAML = "\n...\n"  # ends each run.yaml: YAML that was truncated is often still YAML
POSITION = "data_position"  # its key in trainer_state.json, see trainer/dataloading/dataloaders.py
MODEL_ALONE = "holds the model alone (save_only_model)"


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint.

    Attributes:
        folder: The checkpoint-N folder.
        run: The configuration of the run that wrote it.
        run_lines: The lines of its run.yaml; each ends with a comment that says where its value came from.
        manifest, state: The contents of its manifest.json and trainer_state.json.
    """

    folder: Path
    run: RunConfig
    run_lines: tuple[str, ...]
    manifest: dict[str, Any]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["global_step"]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run that wrote it."""
        return self.state["max_steps"]

    @property
    def is_weights_only(self) -> bool:
        return not self.manifest.get("resumable", True)

    @property
    def steps_per_epoch(self) -> int | None:
        value: Any = self.state.get("stateful_callbacks")
        for name in (POSITION, "steps_per_epoch"):
            value = value.get(name) if isinstance(value, dict) else None
        return value if type(value) is int and value > 0 else None

    @property
    def batch(self) -> tuple[int, int, int] | None:
        """Batch per device, accumulated batches, processes."""
        batch = tuple(self.manifest.get(name) for name in (PER_DEVICE, ACCUMULATED, "world_size"))
        return batch if all(type(count) is int and count > 0 for count in batch) else None

    def is_finished(self, total_steps: int | None = None) -> bool:
        """Whether the checkpoint is at the last step of the run.

        Args:
            total_steps: Steps of the run as it is now; None: as it was when it wrote the checkpoint.
        """
        total = self.total_steps if total_steps is None else total_steps
        return self.step >= total > 0


class Search(NamedTuple):
    """The checkpoint to resume from (None: a new run), and for each newer one that was skipped why."""

    point: ResumePoint | None
    skipped: dict[Path, str]


def find_checkpoint(run: RunConfig, deep: bool = False) -> Search:
    """Find the checkpoint to resume from; `auto` takes the newest complete one, if any.

    Args:
        deep: Hash large files too, see `inspect`.

    Raises:
        ConfigError: a checkpoint that was named, or any that there must be, is not complete; the newest one cannot be
            read, or belongs to another version.
    """
    if not run.wants_resume:
        return Search(None, {})
    asked, place = str(run.hyper.resume_from_checkpoint), run.place("resume_from_checkpoint")
    if not asked.strip():
        raise ConfigError(f"`resume_from_checkpoint`{place} is empty; give auto, a checkpoint folder, or leave it out")
    if not run.resumes_newest:
        return Search(_named(run, asked, deep), {})
    skipped = {}
    for folder in reversed(checkpoints(run.checkpoint_dir)):
        point = inspect(run, folder, deep)
        if isinstance(point, ResumePoint):
            return Search(point, skipped)
        if manifest.UNREADABLE in point:
            raise ConfigError(f"{folder} {point}; it may be intact: start again when it can be read, or move it away")
        if manifest.OTHER_FORMAT in point:
            raise ConfigError(f"{folder} {point}")
        skipped[folder] = point
    if asked.lower().startswith(AUTO_ELSE):
        return Search(_named(run, asked[len(AUTO_ELSE) :], deep), skipped)
    if asked.lower() == NEWEST:
        raise ConfigError(
            f"`resume_from_checkpoint: {NEWEST}`{place}: {run.checkpoint_dir} has no complete checkpoint; name "
            "the folder of a run with checkpoints, or leave it out (init_from resume has the same meaning)"
        )
    return Search(None, skipped)


def find_on_rank0(run: RunConfig, is_rank0: bool, broadcast: Callable[[Any], Any]) -> Search:
    """Find the checkpoint on rank 0, hashing large files too; every rank gets the same result or error.

    Args:
        broadcast: Returns the value that it has on rank 0.
    """
    choice: Any = None
    if is_rank0:
        try:
            recover(run.checkpoint_dir)
            point, skipped = find_checkpoint(run, deep=True)
            choice = (point.folder if point else None), skipped
        except (ValueError, OSError) as error:
            choice = error
    choice = broadcast(choice)
    if isinstance(choice, Exception):
        raise choice
    folder, skipped = choice
    point = inspect(run, folder) if folder else None
    if isinstance(point, str):
        raise ValueError(f"{folder} {point}")
    return Search(point, skipped)


def _named(run: RunConfig, name: str, deep: bool) -> ResumePoint:
    folder = Path(os.path.expanduser(name))
    label = f"`resume_from_checkpoint: {folder}`{run.place('resume_from_checkpoint')}"
    if not folder.is_dir():
        raise ConfigError(f"{label} is not a checkpoint folder")
    point = inspect(run, folder, deep)
    if isinstance(point, ResumePoint):
        return point
    remedy = "" if NEW_RUN in point else "; name a complete checkpoint-N, or auto to find one"
    raise ConfigError(f"{label} {point}{remedy}")


def inspect(run: RunConfig, folder: Path, deep: bool = False) -> ResumePoint | str:
    """Verify and describe a checkpoint, unless that was done for this run and the folder has not changed since.

    Args:
        deep: Hash large files too; they are always compared by size.

    Returns:
        The checkpoint, or why it cannot be resumed from (`has no optimizer.json`).
    """
    stamp = _stamp(folder)
    if folder not in run.inspected or run.inspected[folder][0] != stamp:
        run.inspected[folder] = stamp, _inspect(folder)
    point = run.inspected[folder][1]
    if deep and isinstance(point, ResumePoint):
        return manifest.difference(folder, point.manifest, hash_small=False) or point
    return point


def _stamp(folder: Path) -> tuple[int, ...] | None:
    """Return numbers that change when files of a checkpoint are added, removed or replaced."""
    try:
        status = (os.stat(folder), os.stat(folder / manifest.NAME))
    except OSError:
        return None
    return tuple(number for stat in status for number in (stat.st_ino, stat.st_mtime_ns))


def _inspect(folder: Path) -> ResumePoint | str:
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        return f"{manifest.UNREADABLE}: {error.strerror}"
    pickles = [name for name in PICKLES if name in names]
    if pickles and manifest.NAME not in names:
        return (
            f"keeps its state in pickles ({pickles[0]}), which can run any code and are never loaded: it is of another "
            f"trainer, or of an older version; {NEW_RUN}"
        )
    try:
        content = manifest.read(folder)
    except ValueError as error:
        return str(error)
    reason = manifest.difference(folder, content, hash_large=False) or _missing(content)
    point = reason or _described(folder, content)
    if isinstance(point, str):
        return point
    if reason := _contradiction(point):
        return reason
    return MODEL_ALONE if point.is_weights_only and not point.is_finished() else point


def _missing(content: dict[str, Any]) -> str | None:
    """Return the first thing that a resumed run needs and the manifest does not list."""
    names = content["files"].keys()
    if not names & set(WEIGHTS):
        return "has no model weights"
    has_state = content.get("resumable", True)
    needed = ["trainer_state.json", "log_interval.json", "run.yaml"]
    needed += ["scheduler.json", "rng-0.json"] if has_state else []
    if "adapter_model.safetensors" in names:
        needed += ["adapter_config.json", "adaptation.json"]
    if names & {"ema.json", "ema.safetensors"}:
        needed += ["ema.json", "ema.safetensors"]
    for name in needed:
        if name not in names:
            return f"has no {name}"
    return "has no optimizer.json" if has_state and not any(map(OPTIMIZER_STATE.fullmatch, names)) else None


def _described(folder: Path, content: dict[str, Any]) -> ResumePoint | str:
    try:
        state = safe_read.read_json(folder / "trainer_state.json")
        if type(state["global_step"]) is not int or type(state["max_steps"]) is not int:
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        return "has a damaged trainer_state.json"
    try:
        text = (folder / "run.yaml").read_text(encoding="utf-8")
        if not text.endswith(END_OF_YAML):
            return "has a truncated run.yaml"
        run = read_saved(folder / "run.yaml", text)
    except (OSError, ValueError):
        return "has a damaged run.yaml"
    if run.model is None or run.dataset is None:
        return "has a damaged run.yaml"
    return ResumePoint(folder, run, tuple(text.splitlines()), content, state)


def _contradiction(point: ResumePoint) -> str | None:
    """Return a contradiction between the files of a checkpoint, each of which is intact."""
    process, names = point.run.process, point.manifest["files"]
    if CHECKPOINT.fullmatch(point.folder.name) and point.step != step_of(point.folder):
        return f"holds the state of step {point.step}"
    if process.using_ema and "ema.json" not in names:
        return "has no ema.json, although its run averaged the weights"
    if process.lora_enable and "adapter_model.safetensors" not in names:
        return "has no adapter_model.safetensors"
    if process.use_quantization and not process.lora_enable and "quantized.safetensors" not in names:
        return "has no quantized.safetensors"
    return None


def superseded(run: RunConfig, point: ResumePoint) -> list[Path]:
    """Return the checkpoints of the branch that a run abandons by resuming from a named checkpoint."""
    if run.resumes_newest:
        return []
    return [folder for folder in checkpoints(run.checkpoint_dir) if step_of(folder) > point.step]


def check_no_new_checkpoints(run: RunConfig, folder: Path) -> None:
    """Check that a folder which did not exist when checkpoints were searched has none now that it is locked."""
    if run.wants_resume and checkpoints(folder):
        raise ValueError(
            f"another run has saved in {folder} while this one was set up; start it again to resume from there"
        )


def set_aside_abandoned(run: RunConfig, point: ResumePoint | None, skipped: dict[Path, str]) -> list[str]:
    """Rename checkpoints of the abandoned branch, so that a later `auto` ignores them; returns lines to print."""
    lines = []
    for path, reason in skipped.items():
        name = set_aside(path, "superseded" if reason == MODEL_ALONE else "damaged")
        lines.append(f"skipping {path.name}: it {reason}; renamed {name}")
    if point is None:
        return lines
    lines.append(f"resuming from {point.folder}")
    for path in superseded(run, point):
        name = set_aside(path, "superseded")
        lines.append(f"{path.name} belongs to the branch that is abandoned here: renamed {name}")
    return lines


# ---- weights and optimizer state of an earlier run ----

WITHOUT_OPTIMIZER = "begin with a new one: --set load_optimizer=false"


def earlier_folder(run: RunConfig) -> Path:
    """Return the folder with the weights of an earlier run (`is_pretrained`, `load_pretrain`).

    That is the folder of the run, or if the run never finished, its newest complete checkpoint.
    """
    folder = Path(os.path.expanduser(run.process.model_name_or_path))
    saved = [
        path for path in (folder, *reversed(checkpoints(folder))) if any((path / name).is_file() for name in WEIGHTS)
    ]
    if not saved or saved[0] == folder:
        return folder
    # A process that is killed while it saves leaves an incomplete checkpoint.
    return next((path for path in saved if isinstance(inspect(run, path), ResumePoint)), saved[0])


def first_optimizer(run: RunConfig) -> Path | None:
    """`load_optimizer`: return the newest checkpoint of the run at model_name_or_path that has an optimizer.

    Raises:
        ValueError: there is none, it is of another optimizer, or either run trains an adapter.
    """
    if not run.process.load_optimizer:
        return None
    folder = earlier_folder(run)
    saved = [path for path in (folder, *reversed(checkpoints(folder))) if (path / "optimizer.json").is_file()]
    key = f"`load_optimizer`{run.place('load_optimizer')}"
    if not saved:
        raise ValueError(f"{key}: {folder} and its checkpoints have no optimizer.json; {WITHOUT_OPTIMIZER}")
    point = run.inspected.get(saved[0], (None, None))[1]
    before = point.run if isinstance(point, ResumePoint) else read_saved(saved[0] / "run.yaml")
    if before.process.lora_enable or run.process.lora_enable:
        trains = f"{saved[0]} trained" if before.process.lora_enable else "this run trains"
        raise ValueError(
            f"{key}: {trains} an adapter (lora_enable), and an optimizer's state belongs to the weights that it "
            f"trained; {WITHOUT_OPTIMIZER}"
        )
    if before.hyper.optim != run.hyper.optim:
        raise ValueError(f"{key}: {saved[0]} was trained with optim {before.hyper.optim}, not {run.hyper.optim}")
    return saved[0]
