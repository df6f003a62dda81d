"""Build a `Bundle` from folders of episodes: split, statistics, datasets, sampling."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from data.bundle import Bundle, collate
from data.cache import in_gigabytes
from data.demonstrations.config import Config, clips_actions, has_bins
from data.demonstrations.dataset import Demonstrations
from data.demonstrations.encoder import ObservationEncoder, image_history, vocabulary_of
from data.demonstrations.language import prompts_of
from data.demonstrations.lerobot.policy import normalization_line, pretrained_normalizers
from data.demonstrations.open_source import prepare_all
from data.demonstrations.processor import Processor
from data.demonstrations.source import EpisodeSource, refuse_difference
from data.processor import saved_json
from data.samplers import MixtureSampler
from data.statistics import Normalizer
from metrics.language import LanguageAccuracy
from storage import safe_read


def assemble(config: Config, run) -> Bundle:
    """Build the `Bundle`; raises ValueError if the folders or their episodes do not fit together."""
    process = run.process
    sources = prepare_all(config, process, Path(run.cache_dir) / "demonstrations")
    for other in sources[1:]:
        refuse_mixture(sources[0], other, config)
    refuse_other_sizes(sources)
    refuse_other_rates(sources)
    cameras = cameras_of(sources, config, process)
    texts = texts_in_batch(sources, process)
    train, evaluation = split(sources, config)
    trained_in = getattr(run, "trained_in", None)  # a model is scored: as it was trained, whatever this data is like
    if trained_in:
        statistics = saved_json(trained_in, "statistics.json")
    else:
        statistics = fit_statistics(sources, train, config, process)
    prompts, prompt_lines = prompts_of(config, run, sources, statistics)
    encoder = Processor.from_files(config, process, statistics, prompts)
    if not trained_in:
        refuse_other_tokens(run, encoder.action_normalization())
        refuse_clipped(run, encoder.action)

    def dataset(chosen: list[np.ndarray], phrasings: dict[str, list[str]] | None = None) -> Demonstrations:
        chunk, subtasks = config.chunk_size, process.use_prev_subtask
        return Demonstrations(sources, chosen, encoder, [*cameras], chunk, texts, subtasks, phrasings)

    train_dataset = dataset(train, config.phrasings)
    lengths, dims = train_dataset.group_lengths, dims_of(encoder, config)
    sets = eval_sets(sources, evaluation, dataset)
    return Bundle(
        train_dataset,
        sets,
        collate,
        partial(MixtureSampler, lengths, config.weights, process.episode_first, config.samples_per_epoch),
        dims,
        {"statistics.json": statistics},
        [
            *summarize(zip(sources, train, evaluation, strict=True), dims, [*cameras]),
            *prompt_lines,
            *(without_instructions(sources) if prompts is not None else ()),
            *shares(config),
            *normalization_line(process, len(encoder.state.shift), len(encoder.action.shift)),
        ],
        metrics={name: LanguageAccuracy() for name in sets if prompts is not None and prompts.use_reasoning},
        processor=encoder,
    )


def refuse_other_tokens(run, normalization: dict) -> None:
    """Raise ValueError if the model's file of action tokens was learnt under another normalization of actions."""
    model = getattr(getattr(run, "model", None), "config", None)
    place = getattr(model, "action_tokenizer", "bins")
    if getattr(model, "head", None) != "tokens" or place == "bins":
        return
    try:
        learnt = safe_read.read_json(Path(place).expanduser())["normalization"]
    except (OSError, ValueError, KeyError, TypeError):  # the model says what is wrong with the file
        return
    if learnt != normalization:
        remedy = "set dataset.normalization and normalization_mask as they were, or learn it again"
        raise ValueError(f"model.action_tokenizer: {place} is for {learnt}, the data has {normalization}; {remedy}")


def refuse_mixture(first: EpisodeSource, other: EpisodeSource, config: Config) -> None:
    """Raise ValueError, naming both, if the samples of two folders do not fit into one batch."""
    refuse_difference(first.first_file, first.arrays, other.first_file, other.arrays)
    cameras = [", ".join(source.details["cameras"]) or "no camera" for source in (first, other)]
    if cameras[0] != cameras[1] and config.missing_cameras == "error":
        raise ValueError(
            f"{first.first_file} has {cameras[0]} but {other.first_file} has {cameras[1]}; name in "
            f"dataset.cameras those that all folders have, or set dataset.missing_cameras: mask"
        )


def refuse_other_sizes(sources: list[EpisodeSource]) -> None:
    """Raise ValueError, naming both, if two folders have images of other sizes, as far as they have any."""
    first, *others = [source for source in sources if source.fit is not None] or [None]
    for other in others:
        if first.fit != other.fit:
            raise ValueError(
                f"images are {first.fit.height}x{first.fit.width} from {first.first_file} but {other.fit.height}x"
                f"{other.fit.width} from {other.first_file}; set dataset.image_size, and image_aspect_ratio square or "
                "pad"
            )


def refuse_other_rates(sources: list[EpisodeSource]) -> None:
    """Raise ValueError, naming both, if two folders have other frames per second, as far as they have any."""
    known = [source for source in sources if source.details.get("fps") is not None]
    for other in known[1:]:
        first, rates = known[0], [source.details["fps"] for source in (known[0], other)]
        if rates[0] != rates[1]:
            differ = f"{first.first_file} has {rates[0]:g} frames per second but {other.first_file} has {rates[1]:g}"
            raise ValueError(f"{differ}; mix data sets of one rate")


def refuse_clipped(run, action: Normalizer) -> None:
    """Raise ValueError if the model would clip an action that the normalization leaves as it is."""
    key = "model.clip_sample" if clips_actions(run) else "model.action_tokenizer: bins" if has_bins(run) else None
    low, high = action.statistics["min"], action.statistics["max"]
    beyond = ~action.mask & ((low < -1) | (high > 1))
    if key is not None and beyond.any():
        dim = int(np.argmax(beyond))
        problem = f"is false for dimension {dim}, which is from {low[dim]:g} to {high[dim]:g}"
        raise ValueError(f"dataset.normalization_mask.action {problem}, but {key} has -1 to 1; set it to true")


def cameras_of(sources: list[EpisodeSource], config: Config, process) -> dict[str, str]:
    """The cameras of all folders, in the model's order, and the key of each in an observation."""
    keys: dict[str, str] = {}
    for source in sources:
        for camera, key in zip(source.details["cameras"], source.details["image_keys"], strict=True):
            keys.setdefault(camera, key)
    wanted = (config.cameras if process.is_multimodal else None) or sorted(keys)
    for camera in wanted:
        if camera not in keys:
            places, known = ", ".join(source.path for source in sources), ", ".join(sorted(keys)) or "none"
            raise ValueError(f"dataset.cameras: no episode of {places} has a camera `{camera}`; there are {known}")
    return {camera: keys[camera] for camera in wanted}


def texts_in_batch(sources: list[EpisodeSource], process) -> tuple[str, ...]:
    """Names of the texts in a batch; raises ValueError if a folder does not record a text that is switched on."""
    for key, kind, place in (
        ("use_reasoning", "reasoning", "reasoning/…"),
        ("use_prev_subtask", "subtask", "reasoning/subtask"),
    ):
        for source in sources:
            count = source.details["texts_incomplete"].get(kind, 0)
            if getattr(process, key) and (count or kind not in source.arrays):
                first = source.details["texts_missing"].get(kind, source.details["names"][0])
                have = f"{count} of {len(source.lengths())} episodes in {source.path} have a text under {place}"
                raise ValueError(f"{key} is true but {have}, the first without is {first}; set {key}: false")
    instructed = process.use_prev_subtask or any("instruction" in source.arrays for source in sources)
    return ("instruction",) * instructed + ("reasoning",) * process.use_reasoning


def split(sources: list[EpisodeSource], config: Config) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Episode numbers of each source, for training and for evaluation.

    Episodes are never divided, since neighbouring steps are nearly the same sample.
    """
    train, evaluation = [], []
    for number, source in enumerate(sources):
        episodes = len(source.lengths())
        count = max(1, round(config.eval_fraction * episodes)) if config.eval_fraction > 0 else 0
        if count >= episodes:
            share = f"dataset.eval_fraction {config.eval_fraction}"
            raise ValueError(f"{share} leaves none of the {episodes} episodes of {source.path} for training; lower it")
        order = np.random.default_rng([config.split_seed, number]).permutation(episodes)
        train.append(np.sort(order[count:]))
        evaluation.append(np.sort(order[:count]))
    return train, evaluation


def fit_statistics(sources: list[EpisodeSource], train: list[np.ndarray], config: Config, process) -> dict:
    """The content of statistics.json, from which observations are encoded without the demonstrations.

    Every training step of all folders counts once, whatever the folders' weights: a changed weight changes which
    samples are drawn, but not their normalization.
    """
    statistics, cameras = {"version": 1}, cameras_of(sources, config, process)
    values = {
        signal: np.concatenate([rows_of(source, name, ids) for source, ids in zip(sources, train, strict=True)])
        for signal, name in (("state", "states"), ("action", "actions"))
    }
    pretrained = pretrained_normalizers(sources[0].details, values, [*cameras.values()], config, process)
    statistics |= {signal: normalizer.to_dict() for signal, normalizer in pretrained.items()}
    for signal in values.keys() - statistics.keys():
        try:
            kind, mask = config.normalization[signal], config.normalization_mask.get(signal)
            normalizer = Normalizer.fit(values[signal], kind, mask, config.minimum_std)
        except ValueError as error:
            raise ValueError(f"dataset.normalization_mask.{signal}: {error}") from None
        statistics[signal] = normalizer.to_dict()
    fit = next((source.fit for source in sources if source.fit), None)
    masked = any(source.details["cameras"] != [*cameras] or "present" in source.arrays for source in sources)
    statistics["observation"] = {
        "state_keys": sources[0].details["state_keys"],
        "image_keys": [*cameras.values()],
        "image_height": fit.height if fit else 0,
        "image_width": fit.width if fit else 0,
        "image_aspect_ratio": process.image_aspect_ratio,
        "history": image_history(config, process),
        "vocabulary": instruction_vocabulary(sources, train) if config.instruction_words else None,
        "n_obs_steps": config.n_obs_steps,
        "past_actions": config.past_actions,
        "masks": masked,
    }
    return statistics


def instruction_vocabulary(sources: list[EpisodeSource], train: list[np.ndarray]) -> list[str]:
    """The words of the training episodes' instructions; ValueError if there are none."""
    texts = set()
    for source, episodes in zip(sources, train, strict=True):
        if "instruction" in source.arrays and len(episodes):
            numbers = np.unique(rows_of(source, "instruction", episodes))
            texts |= {source.details["vocabulary"][number] for number in numbers}
    vocabulary = vocabulary_of(texts)
    if not vocabulary:
        places = ", ".join(source.path for source in sources)
        raise ValueError(f"dataset.instruction_words: true, but no episode in {places} has one; set it to false")
    return vocabulary


def rows_of(source: EpisodeSource, name: str, episodes: np.ndarray) -> np.ndarray:
    """All steps of some episodes of a source, (steps, dimensions)."""
    offsets = source.arrays["offsets"]
    return np.concatenate([source.arrays[name][offsets[e] : offsets[e + 1]] for e in episodes])


def eval_sets(sources: list[EpisodeSource], evaluation: list[np.ndarray], dataset) -> dict[str, Demonstrations]:
    """Evaluation sets by name: `validation` for one folder; for several, one set named after each folder."""
    sets = {}
    for number, source in enumerate(sources if len(evaluation[0]) else []):
        name = Path(source.path).name if len(sources) > 1 else "validation"
        chosen = [ids if other == number else ids[:0] for other, ids in enumerate(evaluation)]
        sets[name if name not in sets else f"{name}_{number}"] = dataset(chosen)
    return sets


def dims_of(encoder: ObservationEncoder, config: Config) -> dict[str, int]:
    fit = encoder.fit
    return {
        "state_dim": len(encoder.state.shift) * encoder.n_obs_steps,
        "action_dim": len(encoder.action.shift),
        "chunk_size": config.chunk_size,
        "past_actions": config.past_actions,
        "num_images": len(encoder.image_keys) * encoder.history if fit else 0,
        "num_cameras": len(encoder.image_keys) if fit else 0,
        "image_height": fit.height if fit else 0,
        "image_width": fit.width if fit else 0,
        "num_words": len(encoder.vocabulary or ()),
        **(encoder.prompts.dims() if encoder.prompts is not None else {}),
    }


def without_instructions(sources: list[EpisodeSource]) -> list[str]:
    """A line for each folder of a mixture without any instruction, which a policy with a language model reads."""
    return [
        f"no episode of {source.path} has an instruction; its prompts are dataset.prompt alone"
        for source in sources
        if "instruction" not in source.arrays
    ]


def shares(config: Config) -> list[str]:
    """A line with the share of the training samples that each folder of a weighted mixture has."""
    if config.weights is None:
        return []
    total = sum(config.weights)
    parts = [f"{path} {weight / total:.1%}" for path, weight in zip(config.paths(), config.weights, strict=True)]
    return [f"samples are drawn from {', '.join(parts)}"]


def summarize(
    parts: Iterable[tuple[EpisodeSource, np.ndarray, np.ndarray]], dims: dict[str, int], cameras: list[str]
) -> list[str]:
    """The lines that a run prints about its sources, each with its episodes for training and for evaluation."""
    lines, sources = [], []
    for source, train_ids, eval_ids in parts:
        sources.append(source)
        lengths, details = source.lengths(), source.details
        lines.append(
            f"{source.path}: {len(lengths)} episodes of {lengths.min()} to {lengths.max()} steps, "
            f"{len(train_ids)} for training ({lengths[train_ids].sum()} steps), {len(eval_ids)} for evaluation"
            + (f", {details['left_out']} mirrored left out" if details["left_out"] else "")
        )
        of_all, left_out = f"of {len(lengths)} episodes of {source.path}", details["cameras_left_out"].items()
        remedy = "name it in dataset.cameras to require it"
        lines += [f"camera {name} is in {count} {of_all} and is left out; {remedy}" for name, count in left_out]
        lacking = {camera: 0 for camera in cameras if camera not in details["cameras"]} | details["cameras_masked"]
        lines += [f"camera {name} is in {count} {of_all} and masked in the others" for name, count in lacking.items()]
        texts = details["texts_incomplete"].items()
        lines += [f"{kind} is in {count} {of_all} and empty in the others" for kind, count in texts]
    details = sources[0].details
    action = f"{dims['chunk_size']} x {dims['action_dim']} ({details['action_key']})"
    lines.append(f"state {dims['state_dim']} ({', '.join(details['state_keys'])}), actions {action}")
    if cameras:
        size = in_gigabytes(sum(source.image_bytes() for source in sources))
        shape = " x ".join(str(dims[name]) for name in ("num_images", "image_height", "image_width"))
        lines.append(f"images {shape} ({', '.join(cameras)}; history {dims['num_images'] // len(cameras)}), {size}")
    return lines
