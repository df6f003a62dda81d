"""Text as token ids: folders with `train.bin` and `val.bin`, memory-mapped, one or several of them.

A sample is a window of block_size tokens and the token that follows each of them. Importing this module needs nothing
but the standard library, so that a configuration can be checked in no time.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage.config_keys import HARMLESS, IMPOSSIBLE

PROCESS_KEYS = frozenset(
    {"cache_dir", "sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k"}
)

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

    path: str | list[str] = field(
        default="shakespeare_char",
        metadata={
            "help": "data set: a folder, or a name looked for in data/ and $KEEL_HOME/datasets/; a list of them in the "
            "modes multidataset and multicontext",
            "on_resume": HARMLESS,
        },
    )
    mode: Literal["single", "multidataset", "multicontext"] = field(
        default="single",
        metadata={
            "help": "single: one data set; multidataset: each batch is of one of several; multicontext: several "
            "streams of equal length, such as words and their parts of speech, read at the same offsets",
            "on_resume": IMPOSSIBLE,
        },
    )
    block_size: int = field(default=256, metadata={"help": "tokens of one sample", "ge": 1})
    sampling_probs: list[float] | None = field(
        default=None,
        metadata={"help": "multidataset: probability of each data set, summing to 1; unset: all equal"},
    )
    sampling_probs_final: list[float] | None = field(
        default=None,
        metadata={"help": "multidataset: the probabilities at the run's end, moved to from the first ones"},
    )
    sampling_transition: Literal["linear", "cosine", "exponential"] | None = field(
        default=None,
        metadata={
            "help": "how probabilities move to the final ones: linear; cosine, slow at both ends; exponential, by "
            "equal factors, scaled to sum to 1; unset: linear"
        },
    )
    interleave: bool = field(
        default=False,
        metadata={
            "help": "multidataset: batches take turns in the proportions sampling_probs instead of being drawn; after "
            "any number of batches each data set had its share to within one"
        },
    )
    separate_embeddings: bool = field(
        default=False,
        metadata={
            "help": "multidataset: one token embedding and output head for each data set, so that their tokenizers may "
            "differ; false: one for all, which then need the same tokenizer",
            "on_resume": IMPOSSIBLE,
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "number of token ids, for a folder without meta.json or meta.pkl; unset: GPT-2's",
            "ge": 1,
            "on_resume": IMPOSSIBLE,
        },
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
        """Keys that would do nothing."""
        for key in (
            "sampling_probs",
            "sampling_probs_final",
            "sampling_transition",
            "interleave",
            "separate_embeddings",
        ):
            if getattr(self, key) not in (None, False) and self.mode != "multidataset":
                raise ValueError(
                    f"{self.named(key)} would do nothing in {self.named('mode')} {self.mode}; leave it out, or set the "
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
        for key in ("sampling_probs", "sampling_probs_final"):
            values = getattr(self, key)
            if values is None:
                continue
            if len(values) != count:
                raise ValueError(
                    f"{self.named(key)} has {len(values)} entries but {self.named('path')} names {count} data sets; "
                    "give one probability for each"
                )
            wrong = [value for value in values if not 0 <= value <= 1]
            if wrong:
                raise ValueError(f"{self.named(key)} holds {wrong[0]:g}; a probability lies between 0 and 1")
            if abs(math.fsum(values) - 1) > PROBABILITY_TOLERANCE:
                raise ValueError(
                    f"{self.named(key)} {shown(values)} sums to {math.fsum(values):.7g}, not to 1; try "
                    f"{shown([value / math.fsum(values) for value in values]) if any(values) else 'equal ones'}"
                )
            if self.sampling_transition == "exponential" and 0 in values:
                raise ValueError(
                    f"{self.named(key)} {shown(values)} holds a 0, which no factor leads from or to; give a small "
                    f"probability instead, or {self.named('sampling_transition')} linear"
                )
        if self.interleave and self.sampling_probs is not None:
            from data.text.proportions import whole_proportions

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
    """Why no file system could have such a path; None for one that may exist. For an error line, after its key."""
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


def check(config: Config, run) -> list[str]:
    """Problems that can be seen from the files' sizes and first bytes, one line each."""
    from data.text.agreement import disagreements, foreign_to_weights
    from data.text.folder import read_folder

    problems, folders = run_problems(config, run), []
    for path in config.paths():
        place = find(path, run.cache_dir)
        if place is None:
            problems += [missing(config, path, run.cache_dir)] if path not in READY else []
            continue
        try:
            folders.append(read_folder(place, config.vocab_size))
        except ValueError as error:
            problems.append(f"{config.named('path')}: {error}")
    if len(folders) == len(config.paths()):
        problems += step_problems(config, folders, run)
    problems += foreign_to_weights(config, folders, run.process.model_name_or_path)
    return problems + disagreements(config, folders)


def missing(config: Config, path: str, cache_dir: Path) -> str:
    """What to do about a data set that is not there."""
    where, place = config.named("path"), Path(path).expanduser()
    if place.is_file():
        return (
            f"{where}: {path} is a file, not a folder of tokens; make one of it: python prepare.py --dataset "
            f"{place.stem} --text {path}"
        )
    if place.is_dir():
        return f"{where}: the folder {path} has neither train.bin nor val.bin; name the one that prepare.py wrote"
    known = {*READY}
    for shelf in (Path("data"), Path(cache_dir) / "datasets"):
        if shelf.is_dir():
            known |= {each.parent.name for each in shelf.glob("*/train.bin")}
    near = difflib.get_close_matches(path, sorted(known), n=1, cutoff=0.6)
    remedy = f"did you mean {near[0]}?" if near else f"prepare it: python prepare.py --dataset {path} --text FILE"
    return f"{where}: no data set {path} here, in data/ or in {Path(cache_dir) / 'datasets'}; {remedy}"


def run_problems(config: Config, run) -> list[str]:
    """Settings of the run under which a mixture of data sets would not be what was asked for.

    What a batch is drawn from follows from the number of its first sample, so batch size and numbering must be known.
    """
    if config.mode != "multidataset":
        return []
    problems, process, moves = [], run.process, config.sampling_probs_final is not None
    if process.tune_batch_size:
        problems.append(
            f"tune_batch_size changes which data set a batch is drawn from ({config.named('mode')} multidataset); set "
            "--per_device_train_batch_size instead"
        )
    if not process.shuffle and not config.interleave:
        problems.append(
            f"shuffle: false reads the data in stored order, but {config.named('mode')} multidataset draws from which "
            f"data set; set {config.named('interleave')} true for a fixed order, or leave shuffle out"
        )
    whole_epochs = isinstance(process.limit_train_batches, float) and process.limit_train_batches == 1
    if not whole_epochs and (moves or config.interleave):
        key = "sampling_probs_final" if moves else "interleave"
        problems.append(
            f"limit_train_batches: {process.limit_train_batches} leaves out the end of each epoch, and with it a part "
            f"of what {config.named(key)} plans; set --max_steps instead"
        )
    if moves and run.hyper.max_steps <= 0 and run.hyper.num_train_epochs == -1:
        problems.append(
            f"{config.named('sampling_probs_final')} are reached at the run's end, but num_train_epochs: -1 has none; "
            "set --max_steps"
        )
    return problems


def draws_by_batch(config: Config) -> bool:
    """Whether each micro-batch is of one data set, so that its size decides which samples there are."""
    return config.mode == "multidataset"


def samples_per_step(run) -> int:
    """Samples that all processes together take for one optimizer step."""
    accumulated = run.trainer.get("gradient_accumulation_steps", 1)
    processes = os.environ.get("WORLD_SIZE", "")
    return run.hyper.per_device_train_batch_size * accumulated * (int(processes) if processes.isdecimal() else 1)


def step_problems(config: Config, folders: list, run) -> list[str]:
    """A step of more samples than the data has windows, counting those at every position: some would come twice for
    certain. The numbers alone of a mistyped batch's samples can fill the memory."""
    counted = folders[:1] if config.mode == "multicontext" else folders
    windows = sum(max(0, folder.splits["train"].tokens - config.block_size) for folder in counted)
    step = samples_per_step(run)
    if not 0 < windows < step:
        return []
    batch = run.hyper.per_device_train_batch_size
    return [
        f"--per_device_train_batch_size (--batch_size) {batch} makes a step of {step:,} samples, with "
        f"gradient_accumulation_steps and processes counted, but the text has {windows:,} windows of "
        f"{config.block_size} tokens; lower it, or use a longer text"
    ]


def prepared(config: Config, run) -> Config:
    """The configuration, after data sets of `READY` that it names and that are missing have been prepared."""
    from data.text import ready

    return ready.prepared(config, run)


def build(config: Config, run):
    """The `Bundle` of the configured data sets; raises ValueError where they cannot be used."""
    from data.text.assemble import assemble

    problems = check(config, run)
    problems += [
        f"{config.named('path')}: {path} is not prepared yet; run python prepare.py --dataset {path}"
        for path in config.paths()
        if path in READY and find(path, run.cache_dir) is None
    ]
    if problems:
        raise ValueError(problems[0])
    return assemble(config, run)
