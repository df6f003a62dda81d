"""Score a checkpoint on its task: `python eval.py --checkpoint OUT --episodes 50 --seed 1000 [--video] [--json FILE]`.

Needs the checkpoint's folder and the simulator, nothing else: not the demonstrations, not the configuration files.
The last line printed is one JSON object.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.cli import entry_flags, refusing
from loader.errors import ConfigError
from loader.hyper import flag
from loader.run_config import RunConfig, read_saved


@dataclass
class EvalArguments:
    """What to score, and how."""

    checkpoint: str | None = flag(None, "A run's output directory, or a checkpoint-N folder in it.")
    episodes: int = flag(50, "Episodes, one for each of the seeds seed, seed + 1, …", ge=1)
    seed: int = flag(1000, "First seed; recordings draw theirs from elsewhere, so these are unseen.", ge=0)
    num_workers: int | None = flag(None, "Simulator processes. Default: one a core.", ge=0)
    device: str | None = flag(None, "Where the policy runs: cpu, cuda … Default: an accelerator where there is one.")
    video: bool = flag(False, "Write a film and a contact sheet of the first episodes; --video_dir implies it.")
    video_episodes: int = flag(1, "How many episodes --video films.", ge=1)
    video_dir: str | None = flag(None, "Where the films go. Default: CHECKPOINT/eval/.")
    json: str | None = flag(None, "Also write the scores to this file.")


class CheckpointPolicy:
    """A saved policy from raw observation to raw action: the model, and around it the normalization saved with it."""

    def __init__(self, folder: Path, device: str):
        from safetensors import SafetensorError

        from models.adapt import load_adapted

        self.run = read_saved(folder / "run.yaml")
        try:
            self.model = load_adapted(folder, self.run.model.module, device)
        except SafetensorError as error:
            raise ValueError(f"{folder}: the model's weights are damaged ({error}); score another checkpoint") from None
        statistics = read_statistics(folder / "statistics.json")
        encoder = self.run.dataset.module.ObservationEncoder
        self.encoder = encoder.from_files(self.run.dataset.config, self.run.process, statistics)
        self.device = device

    def reset(self) -> None:
        """Forgets the last episode: its images, and the rest of its action chunk."""
        self.encoder.reset()
        self.model.reset()

    def __call__(self, observation: dict[str, Any]) -> Any:
        """Action (action_dim,) float64 in the demonstrations' units, for an observation keyed as they are."""
        inputs = {name: tensor.to(self.device) for name, tensor in self.encoder.encode(observation).items()}
        action = self.model.select_action(inputs)
        return self.encoder.decode_action(action.float().cpu().numpy())


def read_statistics(path: Path) -> dict[str, Any]:
    """The normalization saved with the model. Never guessed: without it every action would be wrong.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ValueError(f"{path} cannot be read ({reason}); restore it from the run, or train again") from error


def load_policy(folder: str, device: str) -> CheckpointPolicy:
    """The policy of a checkpoint folder; called once in each worker process.

    Raises:
        ValueError: the folder lacks a file, or its statistics are damaged.
    """
    import transformers

    transformers.logging.disable_progress_bar()  # one bar for each worker process says nothing
    return CheckpointPolicy(Path(folder), device)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Rolls the policy out, prints its scores and returns them."""
    asked = entry_flags(EvalArguments, arguments, "eval.py", __doc__)
    folder, run = refusing(checkpoint_run, asked.checkpoint)
    video = asked.video or asked.video_dir is not None
    video_dir = Path(asked.video_dir) if asked.video_dir else folder / "eval"
    device = refusing(usable_device, asked.device)
    if asked.json:
        refusing(check_writable, asked.json)
    if video:
        refusing(video_dir.mkdir, 0o777, True, True)
    room = run.env.module.__package__
    rollout = importlib.import_module(f"{room}.rollout")
    make_policy = functools.partial(load_policy, str(folder), device)
    films = asked.video_episodes if video else 0
    results = refusing(
        rollout.rollout, make_policy, run.env.config, asked.episodes, asked.seed, asked.num_workers, films
    )
    scores = {"task": run.task, "checkpoint": str(folder), "seed": asked.seed, **rollout.score(results)}
    print_scores(scores)
    if films:
        for path in importlib.import_module(f"{room}.film").film(run.env.config, results, video_dir):
            print(f"film: {path}", flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(scores), flush=True)
    return scores


def checkpoint_run(name: str | None) -> tuple[Path, RunConfig]:
    """The checkpoint's folder and the run that wrote it.

    Raises:
        ConfigError: no such folder, no finished checkpoint in it, or a task without a simulator.
    """
    if name is None:
        raise ConfigError("name the checkpoint to score: --checkpoint OUT")
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise ConfigError(f"checkpoint {folder} is not a folder; name a run's output directory or a checkpoint-N in it")
    for files in (("run.yaml",), ("config.json", "adapter_config.json")):
        if not any((folder / file).is_file() for file in files):
            inside = sorted(path.name for path in folder.glob("checkpoint-*"))
            hint = f"; score one of its checkpoints: {', '.join(inside)}" if inside else ""
            raise ConfigError(f"checkpoint {folder} has no {files[0]}: it is not a finished run{hint}")
    run = read_saved(folder / "run.yaml")
    if run.env is None or run.model is None or run.dataset is None:
        raise ConfigError(f"{folder / 'run.yaml'} names no environment to roll the policy out in (section `env`)")
    return folder, run


def check_writable(path: str) -> None:
    """Raises ConfigError where the scores could not be written: known before the hour of rollouts, not after it."""
    file, folder = Path(path), Path(path).absolute().parent
    if not folder.is_dir() or file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise ConfigError(f"`--json {path}` cannot be written; name a file in a folder that exists")


def usable_device(name: str | None) -> str:
    """The named device, or by default an accelerator where there is one.

    Raises:
        ConfigError: this machine or this build of torch has no such device.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"`--device {name}` cannot be used: {str(error).splitlines()[0]}") from None
    return name


def print_scores(scores: dict[str, Any]) -> None:
    """The scores as a person reads them."""
    for name, title in (("success", "success"), ("strict_success", "strict (held at the last step)")):
        low, high = scores[f"{name}_low"], scores[f"{name}_high"]
        rate = f"{scores[f'{name}_rate']:.1%} of {scores['episodes']} episodes"
        print(f"{title}: {rate} (95 % interval {low:.1%} to {high:.1%})")
    if scores["mean_steps_to_success"] is not None:
        print(f"steps to success: {scores['mean_steps_to_success']:.0f} on average")


if __name__ == "__main__":
    main()
