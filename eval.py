"""Score a checkpoint: `python eval.py --checkpoint OUT [--episodes 50 --video] [--samples 3] [--json FILE]`.

A policy is rolled out in its simulator: that and the checkpoint's folder are all it needs, not the demonstrations. A
model of any other task is scored on its held-out data: loss, and of text perplexity, bits per byte and samples.
The last line printed is one JSON object.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loader.checks.static_checks import check_settings
from loader.command_line.entry import check_output, command_line, entry_flags, refuse_useless, refusing
from loader.errors import ConfigError
from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.resume.config_diff import changed_data
from storage.config_keys import RemembersGiven, key
from storage.safe_read import escaped


@dataclass
class EvalArguments(RemembersGiven):
    """What to score, and how."""

    checkpoint: str | None = key(None, "A run's output directory, or a checkpoint-N folder in it.")
    episodes: int = key(50, "Episodes, one for each of the seeds seed, seed + 1, …", ge=1)
    seed: int = key(
        1000, "First seed; recordings draw theirs from elsewhere, so these are unseen. Also of samples.", ge=0
    )
    num_workers: int | None = key(None, "Simulator processes. Default: one a core.", ge=0)
    device: str | None = key(None, "Where the policy runs: cpu, cuda … Default: an accelerator where there is one.")
    video: bool = key(False, "Write a film and a contact sheet of the first episodes; --video_dir implies it.")
    video_episodes: int = key(1, "How many episodes --video films.", ge=1)
    video_dir: str | None = key(None, "Where the films go. Default: CHECKPOINT/eval/.")
    instruction: Literal["right", "wrong", "held_out"] | None = key(
        None,
        "The policy's instruction in a simulator of several tasks; wrong: that of another task; held_out: a phrasing "
        "that recordings never use.",
    )
    expert: bool = key(False, "Score the scripted expert too, in the same episodes.")
    split: Literal["validation", "test", "train"] = key(
        "validation", "The data that is scored, for tasks without a simulator."
    )
    data: str | None = key(None, "Score other data of the same kind: a path, as --set dataset.path=PATH.")
    set: list[str] = key([], "Override keys of the data, the loss or the environment: --set dataset.eval_fraction=0.5.")
    batch_size: int = key(64, "Held-out samples at a time, for tasks without a simulator.", ge=1)
    samples: int = key(0, "Texts that a language model shall write, or continuations of each held-out signal.", ge=0)
    prompt: str = key("\n", "Text that they continue.")
    tokens: int = key(256, "New tokens of each; of signals, new time steps (fewer than a window).", ge=1)
    temperature: float = key(0.8, "Temperature of sampling; 0: always the likeliest token.", ge=0)
    top_k: int | None = key(200, "Sample from the k likeliest tokens; of signals by default from all ids.", ge=1)
    top_p: float | None = key(None, "Signals: sample from the likeliest ids that sum to this probability.", gt=0, le=1)
    json: str | None = key(None, "Also write the scores to this file.")
    trust_remote_code: bool = key(False, "Run code that comes with the checkpoint's model or tokenizer.")


class CheckpointPolicy:
    """A saved policy from raw observation to raw action: the model, and around it the normalization saved with it."""

    def __init__(self, folder: Path, run: RunConfig, device: str):
        self.run, self.device = run, device
        self.model = load_model(folder, self.run, device)
        processor = self.run.dataset.module.Processor
        self.processor = processor.from_pretrained(folder, self.run.dataset.config, self.run.process)
        if not hasattr(self.model, "select_action") or not hasattr(self.processor, "decode_action"):
            kinds = f"{run.dataset.name} data and model {run.model.name}"
            raise ValueError(f"{folder} has no policy: {kinds} choose no actions")

    def reset(self) -> None:
        """Forgets the last episode: its images, and the rest of its action chunk."""
        self.processor.reset()
        self.model.reset()

    def __call__(self, observation: dict[str, Any]) -> Any:
        """Action (action_dim,) float64 in the demonstrations' units.

        Args:
            observation: One step of what an episode file stacks, by HDF5 path or nested as in the file; further
                entries are not read.

        Raises:
            ValueError: an entry is missing, of the wrong size or not finite, or the action is not finite.
        """
        inputs = {name: tensor.to(self.device) for name, tensor in self.processor.encode(observation).items()}
        action = self.processor.decode_action(self.model.select_action(inputs).float().cpu().numpy())
        if (written := getattr(self.model, "written", None)) is not None:
            self.processor.read_back(written)
        if not all(map(math.isfinite, action.ravel())):  # no robot should get it
            raise ValueError("the policy's action is not finite; its weights are damaged, or the state is far outside")
        return action


def with_remote_code(run: RunConfig, trust_remote_code: bool) -> RunConfig:
    """The run of a checkpoint with the caller's `trust_remote_code`: the checkpoint's own files do not decide that."""
    return replace(run, process=replace(run.process, trust_remote_code=trust_remote_code))


def load_policy(folder: str | Path, device: str | None = None, trust_remote_code: bool = False) -> CheckpointPolicy:
    """Loads the policy of a run or of a checkpoint in it: `policy.reset()` before an episode, `policy(observation)`.

    Args:
        device: cpu, cuda …; None: an accelerator where there is one.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: the folder has no policy, lacks a file, or its statistics are damaged.
    """
    import transformers

    transformers.logging.disable_progress_bar()  # one bar for each worker process says nothing
    path, run = checkpoint_run(str(folder))
    return CheckpointPolicy(path, with_remote_code(run, trust_remote_code), usable_device(device))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Scores the checkpoint, prints its scores and returns them."""
    asked = entry_flags(EvalArguments, arguments, "eval.py", __doc__)
    folder, run = refusing(checkpoint_run, asked.checkpoint, overrides(asked))
    run = with_remote_code(run, asked.trust_remote_code)
    refusing(check_flags, asked, run)
    if asked.json:
        refusing(check_output, "json", asked.json)
    scores = (held_out_scores if run.env is None else rollout_scores)(asked, folder, run)
    write_scores(scores, folder, asked.json)
    return scores


def overrides(asked: EvalArguments) -> list[str]:
    """What the flags change of the checkpoint's configuration, as `key.path=value`."""
    path = [f"dataset.path={json.dumps(asked.data, ensure_ascii=False)}"] if asked.data is not None else []
    instruction = [f"env.instruction={asked.instruction}"] if asked.instruction is not None else []
    return [*asked.set, *path, *instruction]


def write_scores(scores: dict[str, Any], folder: Path, file: str | None) -> None:
    """The scores as one JSON object, printed and perhaps written; and on stderr which of them are not finite."""
    from trainer.callbacks.log_files import json_number

    shown_scores = {name: json_number(value) for name, value in scores.items()}
    if lost := [name for name in scores if shown_scores[name] is not scores[name]]:
        line = f"warning: not finite: {', '.join(lost)}; the weights of {folder}, or the data, are damaged"
        print(line, file=sys.stderr, flush=True)
    if file:
        Path(file).write_text(json.dumps(shown_scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(shown_scores), flush=True)


SCORED_WITH = ("dataset", "loss", "env")  # sections that scoring reads
AT_MOST = ("vocab_size", "block_size")  # sizes of which the data may use fewer than the model has
TAKES_OTHERS = ("image_size",)  # sizes that a model's configuration names, though it may take others
OF_ROLLOUTS = ("instruction", "expert", "episodes", "num_workers", "video", "video_episodes", "video_dir")
OF_HELD_OUT_DATA = ("data", "split", "batch_size", "samples", "prompt", "tokens", "temperature", "top_k", "top_p")
OF_SAMPLES = ("prompt", "tokens", "temperature", "top_k", "top_p", "seed")


def check_flags(asked: EvalArguments, run: RunConfig) -> None:
    """Raises ConfigError for a flag that has no effect here."""
    dead = dict.fromkeys(OF_ROLLOUTS, f"task {run.task} has no simulator to roll a policy out in")
    if run.env is None and not asked.samples:
        dead |= dict.fromkeys(OF_SAMPLES, "no --samples are asked for")
    elif run.env is not None:
        dead = dict.fromkeys(OF_HELD_OUT_DATA, f"task {run.task} rolls its policy out in a simulator")
        if not (asked.video or asked.video_dir):
            dead["video_episodes"] = "nothing is filmed; set --video"
    own = {"validation": "eval_path", "test": "test_path"}.get(asked.split, "")
    if getattr(run.dataset.config, own, None) and not any(word.startswith(f"dataset.{own}=") for word in asked.set):
        dead["data"] = f"the {asked.split} data is dataset.{own}; --set dataset.{own}=PATH names other"
    refuse_useless(asked, dead)


def held_out_scores(asked: EvalArguments, folder: Path, run: RunConfig) -> dict[str, Any]:
    """Loss on what the run held out, what the data derives from it, and samples where they are asked for."""
    from models.pretrained import refuse_other_labels
    from prepare import build_data, build_loss, with_prepared_data
    from trainer.evaluator import evaluate

    device = refusing(usable_device, asked.device)
    run = refusing(with_prepared_data, run)
    bundle = refusing(build_data, run)
    kinds = {"validation": bundle.eval_datasets, "test": bundle.test_datasets, "train": {"train": bundle.train_dataset}}
    sets = kinds[asked.split]
    if not sets:
        nothing = {"validation": "its run held nothing out to be scored on (dataset.eval_fraction)"}
        raise ConfigError(f"{folder}: {nothing.get(asked.split, 'its data has no test set')}")
    refuse_useless(asked, sampling_without_effect(bundle) if asked.samples else {})
    model = refusing(load_model, folder, run, device)
    refusing(refuse_other_labels, model.config, bundle.dims.get("labels"), str(folder))
    changed = changed_data(bundle.files, folder)
    if run.trained_in is not None:
        refusing(check_dims, bundle.dims, model.config)
    elif changed:
        print(f"warning: the data is not what {folder} was trained with: {changed}", file=sys.stderr, flush=True)
    scores: dict[str, Any] = {"task": run.task, "checkpoint": str(folder)}
    loss = refusing(build_loss, run, bundle)
    report_of = "other" if changed and run.trained_in is not None else asked.split
    for name, dataset in sets.items():
        metric = bundle.metrics.get(name) if name != "train" else bundle.train_metric or bundle.metrics.get(name)
        values = evaluate(model, dataset, bundle.collate, asked.batch_size, device, metric, loss)
        print(
            f"{name}, {len(dataset):,} samples: "
            + ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        )
        scores |= values if len(sets) == 1 else {f"{name}_{key}": values[key] for key in values}
        if bundle.report is not None:
            lines = refusing(bundle.report, report_of, dataset, metric, values, folder / "eval")
            print("\n".join(lines), flush=True)
    if len(sets) > 1:
        scores["loss"] = sum(scores[f"{name}_loss"] for name in sets) / len(sets)
    if asked.samples and bundle.free_run is not None:
        scores |= refusing(free_runs, asked, model, bundle, sets, folder / "eval")
    elif asked.samples:
        scores["samples"] = refusing(written_samples, asked, model, bundle.processor)
        print("\n---\n".join(escaped(text, "\n\t") for text in scores["samples"]), flush=True)
    return scores


def sampling_without_effect(bundle: Any) -> dict[str, str]:
    """Flags of `--samples` that change nothing on this data, and why."""
    if bundle.free_run is None:
        return {"top_p": "texts are sampled with --temperature and --top_k"}
    return {"prompt": "held-out samples are continued", **getattr(bundle.free_run, "without_effect", {})}


def free_runs(asked: EvalArguments, model: Any, bundle: Any, sets: dict[str, Any], folder: Path) -> dict[str, float]:
    """Scores of the model's own continuations of held-out samples; a ValueError if it cannot continue them."""
    folder = folder if asked.split == "validation" else folder / asked.split
    options = {name: getattr(asked, name) for name in ("samples", "temperature", "top_p")}
    options["top_k"] = asked.top_k if "top_k" in asked.given else None  # the default is that of texts
    scores: dict[str, float] = {}
    for name, dataset in sets.items():
        values = bundle.free_run(model, dataset, folder, asked.seed, steps=asked.tokens, **options)
        print("\n".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items()), flush=True)
        scores |= values if len(sets) == 1 else {f"{name}_{key}": value for key, value in values.items()}
    print(f"free runs in {folder}", flush=True)
    return scores


def check_dims(dims: dict[str, Any], config: Any) -> None:
    """Raises ConfigError if the model was trained for data of other sizes."""
    for name, size in dims.items():
        trained = getattr(config, name, None)
        fits = isinstance(trained, int) and size <= trained if name in AT_MOST else size == trained
        if trained is not None and not fits and name not in TAKES_OTHERS:
            raise ConfigError(f"the data has {name} {size}, but the model was trained for {trained}; score other data")


def written_samples(asked: EvalArguments, model: Any, processor: Any) -> list[str]:
    """Texts by the model.

    Raises:
        ValueError: it has no tokenizer to write with, the prompt does not fit, or generating fails.
    """
    from data.text.generation import GenerationConfig, TextSampler

    if not hasattr(processor, "tokenizer"):
        raise ValueError("--samples: the data has no single tokenizer to write text with; leave it out")
    config = GenerationConfig(asked.tokens, asked.temperature, asked.top_k)
    try:
        return TextSampler(processor.tokenizer, asked.prompt, asked.samples, config)(model, asked.seed)
    except ValueError:
        raise
    except Exception as error:  # whatever a foreign model's generate() raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"--samples: this model cannot write ({reason}); leave it out") from error


def load_model(folder: Path, run: RunConfig, device: str) -> Any:
    """The checkpoint's model, in evaluation mode on `device`."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    from models.adapt import load_adapted

    has_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of the weights
    try:
        return load_adapted(folder, run.model.module, device, run.process.trust_remote_code)
    except SafetensorError as error:
        raise ValueError(f"{folder}: the model's weights are damaged ({error}); name another checkpoint") from None
    finally:
        if has_bars:
            logging.enable_progress_bar()


def checkpoint_scores(run: RunConfig, bundle: Any, loss: Any, device: Any) -> Any:
    """What `eval_runner` does with each checkpoint of a run; a ValueError if the data does not allow it."""
    from loader.checks.runtime_checks import check_eval_runner
    from trainer.checkpoint_scores import CheckpointScores

    return CheckpointScores.of(
        run.eval_runner,
        bundle,
        *check_eval_runner(run, bundle),
        load=functools.partial(load_model, run=run, device=device),
        loss=loss,
        batch_size=run.hyper.per_device_eval_batch_size,
        out=run.output_dir / "eval_runner",
    )


def rollout_scores(asked: EvalArguments, folder: Path, run: RunConfig) -> dict[str, Any]:
    """The policy's success over episodes in its simulator, and films of the first where they are asked for."""
    video = asked.video or asked.video_dir is not None
    video_dir = Path(asked.video_dir) if asked.video_dir else folder / "eval"
    device = refusing(usable_device, asked.device)
    if video:
        refusing(video_dir.mkdir, 0o777, True, True)
    from sim import rollout

    make_policy = functools.partial(load_policy, str(folder), device, asked.trust_remote_code)
    films = asked.video_episodes if video else 0
    results = refusing(
        rollout.rollout, make_policy, run.env.config, asked.episodes, asked.seed, asked.num_workers, films
    )
    scores = {"task": run.task, "checkpoint": str(folder), "seed": asked.seed, **rollout.score(results)}
    if asked.expert:
        episodes = run.env.config, asked.episodes, asked.seed, asked.num_workers
        successes = refusing(rollout.expert_successes, *episodes)
        scores |= rollout.rate("expert/success", successes)
    print_scores(scores)
    if films:
        from sim.film import film

        for path in film(run.env.config, results, video_dir):
            print(f"film: {path}", flush=True)
    return scores


def checkpoint_run(name: str | None, settings: Sequence[str] = ()) -> tuple[Path, RunConfig]:
    """The checkpoint's folder and the run that wrote it, with other settings where some are given.

    Raises:
        ConfigError: no such folder, no finished checkpoint in it, or a setting that is not one of the data.
    """
    if name is None:
        raise ConfigError("name the checkpoint: --checkpoint OUT")
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise ConfigError(f"checkpoint {folder} is not a folder; name a run's output directory or a checkpoint-N in it")
    for files in (("run.yaml",), ("config.json", "adapter_config.json")):
        if not any((folder / file).is_file() for file in files):
            inside = sorted(path.name for path in folder.glob("checkpoint-*"))
            hint = f"; name one of its checkpoints: {', '.join(inside)}" if inside else ""
            raise ConfigError(f"checkpoint {folder} has no {files[0]}: it is not a finished run{hint}")
    run = read_saved(folder / "run.yaml", settings=settings)
    for setting in settings:
        key_path = setting.partition("=")[0]
        if key_path.partition(".")[0] not in {*SCORED_WITH, *getattr(run.dataset.module, "PROCESS_KEYS", ())}:
            raise ConfigError(f"`--set {setting}` has no effect on a trained model; {', '.join(SCORED_WITH)} keys have")
    if settings:
        run = replace(run, trained_in=folder)
        check_settings(run)
    if run.model is None or run.dataset is None:
        raise ConfigError(f"{folder / 'run.yaml'} names no model or no data; it is not a whole run's")
    return folder, run


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
    """The scores as a person reads them: each success rate, of single tasks and of the expert too."""
    titles = {"success": "success", "strict_success": "strict (held at the last step)"}
    for name in (entry.removesuffix("_rate") for entry in scores if entry.endswith("_rate")):
        low, high = scores[f"{name}_low"], scores[f"{name}_high"]
        of = f" of {scores['episodes']} episodes" if name in titles else ""
        print(f"{titles.get(name, name)}: {scores[f'{name}_rate']:.1%}{of} (95 % interval {low:.1%} to {high:.1%})")
    if scores["mean_steps_to_success"] is not None:
        print(f"steps to success: {scores['mean_steps_to_success']:.0f} on average")


if __name__ == "__main__":
    command_line(main)
