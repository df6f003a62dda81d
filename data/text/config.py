"""Configuration keys of text data sets, and where their folders are; importing this needs no package."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.config_keys import HARMLESS, IMPOSSIBLE, key

SPLITS = ("train", "val")


# Prepared on first use, by name alone.
READY = ("shakespeare_char", "python_stdlib")


# What somebody may have typed for a key, where the flag's name is another.
FLAGS = {
    "mode": "--training_mode",
    "block_size": "--block_size",
    "sampling_probs": "--dataset_sampling_probs",
    "sampling_probs_final": "--dataset_sampling_probs_final",
    "sampling_transition": "--dataset_sampling_probs_transition_method",
    "interleave": "--dataset_interleaving",
    "separate_embeddings": "--multidataset_wte",
}


PATH_FLAGS = {"single": "--dataset", "multidataset": "--dataset_list", "multicontext": "--multicontext_datasets"}


PROBABILITY_TOLERANCE = 1e-6


MOST_IDS = 2**32  # as many as uint32 has; no token file holds more


LONGEST_PATH = 4000  # bytes; Linux takes 4,095


LONGEST_NAME = 240  # bytes; file systems take 255, and what is made beside a folder has a longer name


@dataclass
class Config:
    """YAML section `dataset` with `name: text`."""

    path: str | list[str] = key(
        "shakespeare_char",
        "data set: a folder, or a name looked for in data/ and $KEEL_HOME/datasets/; a list of them in the "
        "modes multidataset and multicontext",
        on_resume=HARMLESS,
    )
    mode: Literal["single", "multidataset", "multicontext"] = key(
        "single",
        "single: one data set; multidataset: each batch is of one of several; multicontext: several "
        "streams of equal length, such as words and their parts of speech, read at the same offsets",
        on_resume=IMPOSSIBLE,
    )
    block_size: int = key(256, "tokens of one sample", ge=1)
    sampling_probs: list[float] | None = key(
        None, "multidataset: probability of each data set, summing to 1; unset: all equal"
    )
    sampling_probs_final: list[float] | None = key(
        None, "multidataset: the probabilities at the run's end, moved to from the first ones"
    )
    sampling_transition: Literal["linear", "cosine", "exponential"] | None = key(
        None,
        "how probabilities move to the final ones: linear; cosine, slow at both ends; exponential, by "
        "equal factors, scaled to sum to 1; unset: linear",
    )
    interleave: bool = key(
        False,
        "multidataset: batches take turns in the proportions sampling_probs instead of being drawn; after "
        "any number of batches each data set had its share to within one",
    )
    separate_embeddings: bool = key(
        False,
        "multidataset: one token embedding and output head for each data set, so that their tokenizers may "
        "differ; false: one for all, which then need the same tokenizer",
        on_resume=IMPOSSIBLE,
    )
    vocab_size: int | None = key(
        None,
        "number of token ids, for a folder without meta.json or meta.pkl; unset: GPT-2's",
        ge=1,
        on_resume=IMPOSSIBLE,
    )

    def __post_init__(self) -> None:
        self._check_paths()
        self._check_mode()
        self._check_probabilities()
        if self.vocab_size is not None and self.vocab_size > MOST_IDS:
            raise ValueError(
                f"{self.named('vocab_size')} is {shortened(str(self.vocab_size))}; token ids are uint32, of which "
                f"{MOST_IDS:,} exist"
            )

    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    def first_probabilities(self) -> list[float]:
        """Probability of each data set at the run's start."""
        count = len(self.paths())
        return self.sampling_probs or [1 / count] * count

    def named(self, key: str) -> str:
        """`dataset.mode (--training_mode)`: a key as YAML and as the command line call it."""
        flag = PATH_FLAGS[self.mode] if key == "path" else FLAGS.get(key)
        return f"dataset.{key} ({flag})" if flag else f"dataset.{key}"

    def _check_paths(self) -> None:
        paths = self.paths()
        if not paths or not all(paths):
            raise ValueError(f"{self.named('path')} names no data set; give a name or a folder")
        for path in paths:
            if problem := bad_path(path):
                raise ValueError(f"{self.named('path')} {problem}")
        if len(set(paths)) != len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"{self.named('path')} names {twice} twice; name each data set once")
        if self.mode == "single" and len(paths) > 1:
            raise ValueError(
                f"dataset.path names {len(paths)} data sets but {self.named('mode')} is single; set it to multidataset "
                "or multicontext"
            )
        if self.mode != "single" and len(paths) < 2:
            raise ValueError(
                f"{self.named('mode')} {self.mode} needs at least two data sets but {self.named('path')} names "
                f"{', '.join(paths)}; name them all, or leave the mode out"
            )

    def _check_mode(self) -> None:
        """Keys that has no effect."""
        for name in (
            "sampling_probs",
            "sampling_probs_final",
            "sampling_transition",
            "interleave",
            "separate_embeddings",
        ):
            if getattr(self, name) not in (None, False) and self.mode != "multidataset":
                raise ValueError(
                    f"{self.named(name)} has no effect in {self.named('mode')} {self.mode}; leave it out, or set the "
                    "mode to multidataset"
                )
        if self.sampling_probs_final is not None and self.sampling_probs is None:
            raise ValueError(
                f"{self.named('sampling_probs_final')} needs {self.named('sampling_probs')}, which it starts from"
            )
        if self.sampling_transition is not None and self.sampling_probs_final is None:
            raise ValueError(
                f"{self.named('sampling_transition')} {self.sampling_transition} has nowhere to go; set "
                f"{self.named('sampling_probs_final')}, or leave it out"
            )
        if self.interleave and self.sampling_probs_final is not None:
            raise ValueError(
                f"{self.named('interleave')} keeps to fixed proportions, so {self.named('sampling_probs_final')} "
                "cannot move them; leave one out"
            )

    def _check_probabilities(self) -> None:
        count = len(self.paths())
        for name in ("sampling_probs", "sampling_probs_final"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != count:
                raise ValueError(
                    f"{self.named(name)} has {len(values)} entries but {self.named('path')} names {count} data sets; "
                    "give one probability for each"
                )
            wrong = [value for value in values if not 0 <= value <= 1]
            if wrong:
                raise ValueError(f"{self.named(name)} holds {wrong[0]:g}; a probability lies between 0 and 1")
            if abs(math.fsum(values) - 1) > PROBABILITY_TOLERANCE:
                raise ValueError(
                    f"{self.named(name)} {shown(values)} sums to {math.fsum(values):.7g}, not to 1; try "
                    f"{shown([value / math.fsum(values) for value in values]) if any(values) else 'equal ones'}"
                )
            if self.sampling_transition == "exponential" and 0 in values:
                raise ValueError(
                    f"{self.named(name)} {shown(values)} holds a 0, which no factor leads from or to; give a small "
                    f"probability instead, or {self.named('sampling_transition')} linear"
                )
        if self.interleave and self.sampling_probs is not None:
            from data.text.interleave import whole_proportions

            try:
                whole_proportions(self.sampling_probs)
            except ValueError as error:
                raise ValueError(f"{self.named('sampling_probs')} {shown(self.sampling_probs)} {error}") from None


def shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def shortened(word: str, most: int = 40) -> str:
    """A word for an error line, which must stay readable."""
    return word if len(word) <= most else f"{word[:most]}…"


def bad_path(path: str) -> str | None:
    """Why no file system could have such a path; None for one that may exist. For an error line, after its name."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"{shortened(path)} is a path of {len(path):,} characters; shorten it"
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    if longest > LONGEST_NAME:
        return f"{shortened(path)} holds a name of {longest:,} bytes; at most {LONGEST_NAME} can be used: shorten it"
    if path.startswith("~") and os.path.expanduser(path) == path:
        return f"{shortened(path)} names the home folder of nobody known here; write it out"
    return None


def find(name: str, cache_dir: str | Path) -> Path | None:
    """The folder of a data set: `name` as a path, else data/NAME here, else CACHE_DIR/datasets/NAME.

    Only a folder with a token file in it counts, so that a package or an unfinished folder of that name hides nothing.
    """
    places = (Path(name).expanduser(), Path("data") / name, Path(cache_dir) / "datasets" / name)
    return next((place for place in places if any((place / f"{split}.bin").is_file() for split in SPLITS)), None)


def samples_per_step(run) -> int:
    """Samples that all processes together take for one optimizer step."""
    accumulated = run.trainer.get("gradient_accumulation_steps", 1)
    processes = os.environ.get("WORLD_SIZE", "")
    return run.hyper.per_device_train_batch_size * accumulated * (int(processes) if processes.isdecimal() else 1)
