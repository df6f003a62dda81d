"""Robot demonstrations: HDF5 files in ACT's layout or IL-Studio's, one per episode, and LeRobot data sets.

A sample is one control step: the observation at that step, and the chunk of actions that begins there. Importing this
module needs only the standard library, so that checking a configuration is fast.
"""

from dataclasses import replace
from pathlib import Path

from data.demonstrations.config import (
    OF_TEXT,
    Config,
    clips_actions,
    folder_problem,
    has_bins,
    reads_tokens,
    unmatched,
)
from data.demonstrations.lerobot import is_lerobot
from storage.config_keys import lazy

# `use_reasoning` and `use_prev_subtask` add texts to the batch: a model that reads texts lists them.
PROCESS_KEYS = frozenset(
    {
        "preload_data",
        "lazy_preprocess",
        "episode_first",
        "skip_mirrored_data",
        "history_images_length",
        "image_aspect_ratio",
        "is_multimodal",
        "cache_dir",
        "model_name_or_path",  # of a LeRobot policy: its normalization
    }
)


def check(config: Config, run) -> list[str]:
    """List the problems that show without opening a file, one line for each."""
    problems = [problem for path in config.paths() if (problem := folder_problem(path, config.layout))]
    if config.path is None and getattr(run, "env", ...) is None:
        problems.append("dataset.path is not set, and there is no `env` to record data in")
    if config.path == []:
        problems.append("dataset.path is an empty list; name at least one folder of episodes")
    if not problems and (patterns := unmatched(config)):
        problems.append(f"dataset.exclude: no episode matches `{patterns[0]}`; correct it, or leave it out")
    if config.image_size is not None and run.process.image_aspect_ratio == "keep":
        given = f"dataset.image_size {config.image_size}"
        problems.append(f"{given} contradicts image_aspect_ratio: keep; leave image_size out, or use square or pad")
    if config.rename and not any(is_lerobot(Path(path).expanduser(), config.layout) for path in config.paths()):
        problems.append("dataset.rename names features of LeRobot data sets, but dataset.path has none; leave it out")
    problems += text_problems(config, run)
    kind = config.normalization["action"]
    if kind not in ("min_max", "percentiles") and has_bins(run):
        beyond = f"dataset.normalization.action: {kind} leaves actions beyond [-1, 1]"
        problems.append(f"{beyond}, which model.action_tokenizer: bins covers; set it to percentiles or min_max")
    if kind != "min_max" and clips_actions(run):
        beyond = f"dataset.normalization.action: {kind} leaves actions beyond [-1, 1]"
        problems.append(f"{beyond}, to which model.clip_sample clips; set it to min_max, or model.clip_sample to false")
    return problems


def text_problems(config: Config, run) -> list[str]:
    """What is wrong with the keys of texts, for a model that reads them as tokens and for others."""
    if reads_tokens(run):
        known = config.tokenizer or run.process.model_name_or_path
        remedy = "set dataset.tokenizer to a folder or hub id, or model_name_or_path to a model that has one"
        return [] if known else [f"no tokenizer is known for model {run.model.name}: {remedy}"]
    defaults = Config()
    return [
        f"dataset.{name} is for policies with a language model, which reads tokens; leave it out"
        for name in OF_TEXT
        if getattr(config, name) != getattr(defaults, name)
    ]


def build(config: Config, run):
    """Build the `Bundle` of the configured folders; raises ValueError if they cannot be used."""
    from data.demonstrations.build_bundle import assemble

    if config.path is None:
        raise ValueError("dataset.path is not set; name a folder of episodes, or record with prepare.py --task_name …")
    problems = check(config, run)
    if problems:
        raise ValueError(problems[0])
    return assemble(config, run)


def action_chunks(config: Config, run, most: int = 20_000):
    """Chunks of actions to learn a tokenizer from, of steps of the training episodes.

    Returns:
        (N, C, A) float32, normalised, at most `most` chunks, evenly spread; and their normalization as
        `ObservationEncoder.action_normalization` describes it.

    Raises:
        ValueError: the episodes cannot be used.
    """
    plain = replace(config, cameras=[], **{name: getattr(Config(), name) for name in OF_TEXT})
    dataset = build(plain, replace(run, model=None)).train_dataset
    step = -(-len(dataset) // most)
    chunks = dataset.__getitems__(list(range(0, len(dataset), step)))["actions"].numpy()
    return chunks, dataset.encoder.action_normalization()


__getattr__ = lazy(
    __name__, Processor="data.demonstrations.processor", ObservationEncoder="data.demonstrations.encoder"
)
