"""From folders of episodes to a `Bundle`: split, statistics, datasets, sampling."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.bundle import Bundle
from data.cache import in_gigabytes
from data.demonstrations.config import Config
from data.demonstrations.dataset import Demonstrations, collate
from data.demonstrations.encoder import ObservationEncoder
from data.demonstrations.source import EpisodeSource, prepare
from data.mixing import MixtureSampler
from data.statistics import Normalizer


@dataclass(frozen=True)
class SamplerFactory:
    """Seed -> sampler of the training set; a class, so that a bundle can be pickled."""

    group_lengths: list[list[int]]
    weights: list[float] | None
    episode_first: bool
    samples_per_epoch: int | None

    def __call__(self, seed: int) -> MixtureSampler:
        return MixtureSampler(self.group_lengths, self.weights, self.episode_first, self.samples_per_epoch, seed)


def assemble(config: Config, run) -> Bundle:
    process = run.process
    sources = [prepare(path, config, process, Path(run.cache_dir) / "demonstrations") for path in config.paths()]
    for other in sources[1:]:
        refuse_mixture(sources[0], other)
    texts = wanted_texts(sources, process)
    train, held_out = split(sources, config)
    statistics = fit_statistics(sources, train, config, process)
    encoder = ObservationEncoder.from_files(config, process, statistics)
    counts = [len(source.lengths()) for source in sources]
    first_ids = [sum(counts[:number]) for number in range(len(sources))]

    def dataset(chosen: list[np.ndarray]) -> Demonstrations:
        return Demonstrations(sources, chosen, first_ids, encoder, config.chunk_size, texts, process.use_prev_subtask)

    train_dataset = dataset(train)
    sampling = SamplerFactory(
        train_dataset.group_lengths, config.weights, process.episode_first, config.samples_per_epoch
    )
    return Bundle(
        train_dataset,
        eval_sets(sources, held_out, dataset),
        collate,
        sampling,
        dims_of(encoder, config),
        {"statistics.json": statistics},
        summarize(sources, train, held_out, encoder, config),
    )


def refuse_mixture(first: EpisodeSource, other: EpisodeSource) -> None:
    """Folders that cannot be batched together, with both named."""
    for signal in ("actions", "states"):
        dims = [source.arrays[signal].shape[1] for source in (first, other)]
        if dims[0] != dims[1]:
            raise ValueError(
                f"{signal} have {dims[0]} dimensions in {first.first_file} but {dims[1]} in "
                f"{other.first_file}; mix folders of one kind of robot, or name state_keys and action_key"
            )
    cameras = [", ".join(source.details["cameras"]) or "no camera" for source in (first, other)]
    if cameras[0] != cameras[1]:
        raise ValueError(
            f"{first.first_file} has {cameras[0]} but {other.first_file} has {cameras[1]}; name in "
            f"dataset.cameras those that all folders have"
        )
    sizes = [source.fit and (source.fit.height, source.fit.width) for source in (first, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"images are {sizes[0][0]}x{sizes[0][1]} from {first.first_file} but {sizes[1][0]}x"
            f"{sizes[1][1]} from {other.first_file}; set dataset.image_size, and image_aspect_ratio to "
            f"square or pad"
        )


def wanted_texts(sources: list[EpisodeSource], process) -> tuple[str, ...]:
    """The texts a batch carries; asking for what a folder does not record is an error."""
    for key, kind, place in (
        ("use_reasoning", "reasoning", "reasoning/…"),
        ("use_prev_subtask", "subtask", "reasoning/subtask"),
    ):
        for source in sources:
            if getattr(process, key) and kind not in source.arrays:
                raise ValueError(
                    f"{key} is true but {source.path} records no text under {place}; set {key}: false, or "
                    f"use a dataset that has it"
                )
    instructed = process.use_prev_subtask or any("instruction" in source.arrays for source in sources)
    return ("instruction",) * instructed + ("reasoning",) * process.use_reasoning


def split(sources: list[EpisodeSource], config: Config) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Episode numbers of each source, for training and held out; whole episodes, since neighbouring steps are
    nearly the same sample."""
    train, held_out = [], []
    for number, source in enumerate(sources):
        episodes = len(source.lengths())
        count = max(1, round(config.eval_fraction * episodes)) if config.eval_fraction > 0 else 0
        if count >= episodes:
            raise ValueError(
                f"dataset.eval_fraction {config.eval_fraction} leaves none of the {episodes} episodes of "
                f"{source.path} for training; lower it, or record more episodes"
            )
        order = np.random.default_rng([config.split_seed, number]).permutation(episodes)
        train.append(np.sort(order[count:]))
        held_out.append(np.sort(order[:count]))
    return train, held_out


def fit_statistics(sources: list[EpisodeSource], train: list[np.ndarray], config: Config, process) -> dict:
    """The content of statistics.json: all that turns observations into inputs without the data.

    Over every training step of all folders once, whatever their weights: a changed weight then changes what
    is drawn, never what a number means.
    """
    statistics = {"version": 1}
    for signal, name in (("state", "states"), ("action", "actions")):
        values = np.concatenate([rows_of(source, name, chosen) for source, chosen in zip(sources, train, strict=True)])
        try:
            normalizer = Normalizer.fit(
                values,
                config.normalization[signal],
                config.normalization_mask.get(signal),
                config.minimum_std,
            )
        except ValueError as error:
            raise ValueError(f"dataset.normalization_mask.{signal}: {error}") from None
        statistics[signal] = normalizer.to_dict()
    details, fit = sources[0].details, sources[0].fit
    statistics["observation"] = {
        "state_keys": details["state_keys"],
        "image_keys": details["image_keys"],
        "image_height": fit.height if fit else 0,
        "image_width": fit.width if fit else 0,
        "image_aspect_ratio": process.image_aspect_ratio,
        "history": process.history_images_length,
    }
    return statistics


def rows_of(source: EpisodeSource, name: str, episodes: np.ndarray) -> np.ndarray:
    """All steps of some episodes of a source, (steps, dimensions)."""
    offsets = source.arrays["offsets"]
    return np.concatenate([source.arrays[name][offsets[e] : offsets[e + 1]] for e in episodes])


def eval_sets(sources: list[EpisodeSource], held_out: list[np.ndarray], dataset) -> dict[str, Demonstrations]:
    """`validation` for one folder; for several one set each, named after its folder."""
    if not len(held_out[0]):
        return {}
    if len(sources) == 1:
        return {"validation": dataset(held_out)}
    sets = {}
    for number, source in enumerate(sources):
        name = Path(source.path).name
        chosen = [ids if other == number else ids[:0] for other, ids in enumerate(held_out)]
        sets[name if name not in sets else f"{name}_{number}"] = dataset(chosen)
    return sets


def dims_of(encoder: ObservationEncoder, config: Config) -> dict[str, int]:
    fit = encoder.fit
    return {
        "state_dim": len(encoder.state.shift),
        "action_dim": len(encoder.action.shift),
        "chunk_size": config.chunk_size,
        "num_images": len(encoder.image_keys) * encoder.history if fit else 0,
        "image_height": fit.height if fit else 0,
        "image_width": fit.width if fit else 0,
    }


def summarize(
    sources: list[EpisodeSource],
    train: list[np.ndarray],
    held_out: list[np.ndarray],
    encoder: ObservationEncoder,
    config: Config,
) -> list[str]:
    lines = []
    for source, kept, out in zip(sources, train, held_out, strict=True):
        lengths, left_out = source.lengths(), source.details["left_out"]
        lines.append(
            f"{source.path}: {len(lengths)} episodes of {lengths.min()} to {lengths.max()} steps, "
            f"{len(kept)} to train ({lengths[kept].sum()} steps), {len(out)} held out"
            + (f", {left_out} mirrored left out" if left_out else "")
        )
        lines += [
            f"camera {camera} is in {count} of {len(lengths)} episodes of {source.path} and is left out; name it in "
            f"dataset.cameras to require it"
            for camera, count in source.details["cameras_left_out"].items()
        ]
    details, dims = sources[0].details, dims_of(encoder, config)
    lines.append(
        f"state {dims['state_dim']} ({', '.join(details['state_keys'])}), actions {dims['chunk_size']} x "
        f"{dims['action_dim']} ({details['action_key']})"
    )
    if encoder.fit is not None:
        size = in_gigabytes(sum(source.image_bytes() for source in sources))
        lines.append(
            f"images {dims['num_images']} x {dims['image_height']} x {dims['image_width']} "
            f"({', '.join(details['cameras'])}; history {encoder.history}), {size}"
        )
    return lines
