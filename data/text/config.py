"""Declare the configuration keys of text data sets, and find their folders; needs only the standard library."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from storage.config_keys import HARMLESS, IMPOSSIBLE, key

SPLITS = ("train", "val")
TOKEN_FILES = tuple(f"{split}.bin" for split in SPLITS)
READY = ("shakespeare_char", "python_stdlib")  # prepared on first use, by name alone
# Flags whose names differ from the keys'.
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
# Keys that only a mixture has.
MIXTURE_KEYS = ("sampling_probs", "sampling_probs_final", "sampling_transition", "interleave", "separate_embeddings")
PROBABILITY_TOLERANCE = 1e-6
MOST_IDS = 2**32  # as many as uint32 has; no token file holds more


@dataclass
class Config:
    """YAML section `dataset` with `name: text`."""

    path: str | list[str] = key(
        "shakespeare_char",
        "data set: a folder, or a name looked for in data/ and $KEEL_HOME/datasets/; a list of them in the "
        "modes multidataset and multicontext",
        on_resume=HARMLESS,
        is_path=TOKEN_FILES,
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
        "any number of batches each data set has had its share to within one",
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
        le=MOST_IDS,
        on_resume=IMPOSSIBLE,
    )

    def __post_init__(self) -> None:
        self._check_paths()
        self._check_mode()
        for name in ("sampling_probs", "sampling_probs_final"):
            self._check_probabilities(name, getattr(self, name))
        if self.interleave and self.sampling_probs is not None:
            try:
                whole_proportions(self.sampling_probs)
            except ValueError as error:
                raise ValueError(f"{self.named('sampling_probs')} {shown(self.sampling_probs)} {error}") from None

    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    def first_probabilities(self) -> list[float]:
        """Return the probability of each data set at the start of the run."""
        count = len(self.paths())
        return self.sampling_probs or [1 / count] * count

    def named(self, key: str) -> str:
        """Return `dataset.mode (--training_mode)`: a key as YAML and as the command line call it."""
        flag = PATH_FLAGS[self.mode] if key == "path" else FLAGS.get(key)
        return f"dataset.{key} ({flag})" if flag else f"dataset.{key}"

    def _check_paths(self) -> None:
        paths = self.paths()
        if not paths or not all(paths):
            raise ValueError(f"{self.named('path')} names no data set; give a name or a folder")
        if len(set(paths)) != len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"{self.named('path')} names {twice} twice; name each data set once")
        if (self.mode == "single") != (len(paths) == 1):
            needed = "takes one data set" if self.mode == "single" else "needs at least two data sets"
            raise ValueError(
                f"{self.named('mode')} {self.mode} {needed} but {self.named('path')} names {', '.join(paths)}; change "
                "the mode (single, multidataset, multicontext) or the data sets"
            )

    def _check_mode(self) -> None:
        """No key without effect."""
        for name in MIXTURE_KEYS:
            if getattr(self, name) not in (None, False) and self.mode != "multidataset":
                raise ValueError(
                    f"{self.named(name)} has no effect in {self.named('mode')} {self.mode}; leave it out, or set the "
                    "mode to multidataset"
                )
        for name, needed in (
            ("sampling_probs_final", "sampling_probs"),
            ("sampling_transition", "sampling_probs_final"),
        ):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(
                    f"{self.named(name)} has no effect without {self.named(needed)}; set it too, or neither"
                )
        if self.interleave and self.sampling_probs_final is not None:
            raise ValueError(
                f"{self.named('interleave')} keeps to fixed proportions, so {self.named('sampling_probs_final')} "
                "cannot move them; leave one out"
            )

    def _check_probabilities(self, name: str, values: list[float] | None) -> None:
        if values is None:
            return
        if len(values) != len(self.paths()):
            raise ValueError(
                f"{self.named(name)} has {len(values)} entries but {self.named('path')} names {len(self.paths())} data "
                "sets; give one probability for each"
            )
        if any(not 0 <= value <= 1 for value in values) or abs(math.fsum(values) - 1) > PROBABILITY_TOLERANCE:
            raise ValueError(
                f"{self.named(name)} {shown(values)} are no probabilities: each is from 0 to 1, and they sum to 1 (not "
                f"{math.fsum(values):.7g})"
            )
        if self.sampling_transition == "exponential" and 0 in values:
            raise ValueError(
                f"{self.named(name)} {shown(values)} holds a 0, which no factor leads from or to; give a small "
                f"probability instead, or {self.named('sampling_transition')} linear"
            )


def shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def find(name: str, cache_dir: str | Path) -> Path | None:
    """Return the folder of a data set: `name` as a path, else data/NAME here, else CACHE_DIR/datasets/NAME.

    Only a folder with a token file in it counts, so that a package or an unfinished folder of that name hides nothing.
    """
    places = (Path(os.path.expanduser(name)), Path("data") / name, Path(cache_dir) / "datasets" / name)
    # os.path: a name that no file system can have is not there, and no error.
    return next((place for place in places if any(os.path.isfile(place / file) for file in TOKEN_FILES)), None)


@dataclass
class PredictFlags:
    """How to generate text."""

    max_new_tokens: int = key(256, "Text: new tokens of each prediction, at most.", ge=1, aliases=["--tokens"])
    temperature: float = key(0.0, "Text: temperature of sampling; 0: always the most probable token.", ge=0)
    top_k: int | None = key(None, "Text: sample from the k most probable tokens. Default: from all.", ge=1)
    samples: int = key(1, "Text: predictions for each input.", ge=1)
    seed: int = key(0, "Text: seed of sampling.", ge=0)

    def without_effect(self, output: str | None) -> dict[str, str]:
        """See `data.processor`."""
        if self.temperature > 0:
            return {}
        return dict.fromkeys(("top_k", "samples", "seed"), "temperature 0 does not sample; set --temperature")


LONGEST_PATTERN = 10_000  # turns; how finely proportions may be given
TOLERANCE = 1e-6


def whole_proportions(values: list[float]) -> list[int]:
    """Return whole numbers in the same proportions: [0.5, 0.25, 0.25] -> [2, 1, 1]; 0.333333 counts as a third.

    Raises:
        ValueError: The smallest such numbers sum to more than LONGEST_PATTERN.
    """
    exact = [Fraction(value).limit_denominator(LONGEST_PATTERN) for value in values]
    near = all(abs(value - share) <= TOLERANCE for value, share in zip(values, exact, strict=True))
    whole = math.lcm(*(share.denominator for share in exact))
    if not near or sum(exact) != 1 or whole > LONGEST_PATTERN:
        raise ValueError(
            f"make no pattern of at most {LONGEST_PATTERN:,} batches, as interleaving needs; round them, to four "
            "decimals or fewer"
        )
    return [int(share * whole) for share in exact]
