"""Configuration keys of signals; importing this needs only the standard library."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from storage.config_keys import EVALUATION, HARMLESS, IMPOSSIBLE, TRAJECTORY, key

fixed = functools.partial(key, on_resume=IMPOSSIBLE)  # another value would be other data


@dataclass
class DataSplitter:
    """`dataset.datasplitter`: which recordings, or which part of each, validate and test."""

    by: Literal["time", "session", "subject", "dataset"] | None = fixed(
        None, "time: the end of each recording is held out; the others: whole ones. Null: time; session of trials."
    )
    eval_fraction: float = fixed(
        0.1,
        "Share that validates, if `eval` and eval_path name nothing.",
        ge=0,
        lt=1,
        unless=("eval_path", "datasplitter.eval"),
    )
    test_fraction: float = fixed(
        0.0,
        "Share that tests, if `test` and test_path name nothing.",
        ge=0,
        lt=1,
        unless=("test_path", "datasplitter.test"),
    )
    eval: list[str] | None = fixed(None, "Sessions, subjects or data sets that validate.")
    test: list[str] | None = fixed(None, "Sessions, subjects or data sets that test.")
    gap_seconds: float = fixed(0.0, "time: seconds left out before each held-out part.", ge=0)
    subject_pattern: str = fixed(r"sub-([A-Za-z0-9]+)", "Regular expression; group 1 of the path is the subject.")
    session_pattern: str = fixed(
        r"(sub-[A-Za-z0-9]+[_/\\]ses-[A-Za-z0-9]+)", "The same for the session; without a match: the file."
    )

    def __post_init__(self) -> None:
        if self.by in (None, "time") and (self.eval or self.test):
            raise ValueError("`eval` and `test` name sessions, subjects or data sets; set `by` to one of these")
        if self.by not in (None, "time") and self.gap_seconds:
            raise ValueError(f"`gap_seconds` has no effect with `by: {self.by}`; leave it out")
        if self.eval_fraction + self.test_fraction >= 1:
            raise ValueError("`eval_fraction` and `test_fraction` leave nothing to train on; lower them")


@dataclass
class MixUp:
    """`dataset.mixup`: training batches mixed with themselves in another order (arXiv:1710.09412)."""

    mixup_alpha: float = key(0.0, "Alpha of the Beta distribution that the share is drawn from; 0: none.", ge=0)
    mixup_prob: float = key(1.0, "Probability that a batch is mixed.", ge=0, le=1)
    num_classes: int | None = key(None, "Number of classes; required if targets are classes.", ge=2)
    quantize: bool = fixed(False, "Turn signals into mu-law ids, after mixing.")
    mu: int = fixed(255, "Mu of mu-law, for quantize.", ge=1)
    max_val: float = fixed(10.0, "Largest absolute value, for quantize.", gt=0)


# Keys that have an effect with some targets alone.
ONLY_WITH = {
    ("tokens", "text"): ("tokenizer",),
    ("text",): ("tokenizer_path", "tokenizer_size", "group", "max_length", "use_separator"),
    ("class",): ("classes",),
}


@dataclass
class Config:
    """YAML section `dataset` with `name: signals`."""

    path: str | list[str] | None = key(
        None, "Recordings: a file, a folder or a list of them.", on_resume=IMPOSSIBLE, is_path=True
    )
    eval_path: str | list[str] | None = key(
        None, "The same for validation; null: split off.", on_resume=EVALUATION, is_path=True
    )
    test_path: str | list[str] | None = key(
        None, "The same for the test set; null: split off.", on_resume=EVALUATION, is_path=True
    )
    target: Literal["tokens", "values", "class", "text"] = fixed(
        "tokens", "What is predicted: the next ids, the next values, a class, or the next token of signals as text."
    )
    window: float | None = fixed(
        None, "Length of a sample, in `unit`; null: 256 samples; whole trials if classes.", gt=0
    )
    overlap: float = key(0.0, "By how much windows side by side overlap, in `unit`.", on_resume=TRAJECTORY, ge=0)
    unit: Literal["samples", "seconds"] = fixed("samples", "Unit of window and overlap, after resampling.")
    sampling: Literal["random", "grid"] = key(
        "random",
        "Training windows: start anywhere at random, or lie side by side, each once an epoch; those of classes do.",
        on_resume=TRAJECTORY,
    )
    label_column: str | None = fixed(None, "Column of a table whose runs of equal values are events.")
    classes: list[str] | None = fixed(None, "Class names in their order; null: all of the training split, sorted.")
    # Channels
    channels: list[str] | None = fixed(None, "Names, patterns (EEG*) or types (eeg) of channels to keep; null: all.")
    rename: dict[str, str] | None = fixed(None, "Channels to rename, {old: new}; the other keys use new names.")
    merge_by: Literal["name", "position"] = fixed(
        "name", "Which channels of different recordings are the same: equal names, or equal positions and types."
    )
    missing: Literal["error", "fill", "drop"] = fixed(
        "error", "A channel that a recording lacks: refused, filled, or left out of all."
    )
    fill_value: float = fixed(0.0, "What missing channels and samples are, in standardised units; they are no targets.")
    # Preprocessing
    sampling_rate: float | None = fixed(None, "Hz, of files that do not say.", gt=0)
    resample: float | None = fixed(None, "Hz that all recordings are resampled to; null: they keep theirs.", gt=0)
    highpass: float | None = fixed(None, "Hz; causal Butterworth filter of order 4.", gt=0)
    lowpass: float | None = fixed(None, "Hz; causal Butterworth filter of order 4.", gt=0)
    notch: list[float] | None = fixed(None, "Hz of mains hum and the like to remove; causal, quality 30.")
    reference: str | list[str] | None = fixed(
        None, "average, or channels whose mean is subtracted from all; null: none."
    )
    standardise: Literal["zscore", "robust", "none"] = fixed(
        "zscore", "Per channel by the training split: mean and deviation, median and quartiles, or not."
    )
    clip: float | None = fixed(5.0, "Largest absolute value after standardising; null: none.", gt=0)
    nan: Literal["error", "fill", "drop"] = fixed("error", "NaN: refused, filled, or a gap between windows.")
    flat: Literal["error", "fill", "drop"] = fixed(
        "error", "A channel that is constant in a recording: refused, filled, or treated as missing."
    )
    # Tokens
    tokenizer: str = fixed("mu_law", "mu_law, uniform, or the folder of a trained `rvq` model.", is_path=True)
    levels: int = fixed(256, "Number of ids of mu_law and uniform.", ge=2, le=65536)
    # Text
    tokenizer_path: str | None = fixed(None, "Folder with `tokenizer/`, written by prepare.py.", is_path=True)
    tokenizer_size: int = fixed(1000, "Tokens of the tokenizer that prepare.py trains.", ge=3)
    group: int = fixed(50, "Samples of a channel that are written before the next channel.", ge=1)
    max_length: int | None = fixed(None, "Most tokens of a sample; longer ones are cut off; null: no limit.", ge=2)
    use_separator: bool = fixed(True, "Write a separator between the groups of channels.")
    datasplitter: DataSplitter = field(default_factory=DataSplitter, metadata={"help": "Its keys, see DataSplitter."})
    mixup: MixUp = field(default_factory=MixUp, metadata={"help": "Its keys, see MixUp."})
    num_workers: int | None = key(
        None, "Processes that prepare recordings; null: one a core.", on_resume=HARMLESS, ge=1
    )

    def __post_init__(self) -> None:
        for targets, names in ONLY_WITH.items():
            for name in names if self.target not in targets else ():
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"`{name}` has no effect with `target: {self.target}`; leave it out")
        if self.clip is None and self.target in ("tokens", "text"):
            raise ValueError(f"`clip: null` leaves no range to quantise for `target: {self.target}`; set a number")
        if self.overlap and self.window is None:
            raise ValueError("`overlap` needs `window`; set both")
        if self.window is not None and self.overlap >= self.window:
            raise ValueError(f"`overlap: {self.overlap:g}` must be less than `window: {self.window:g}`; set both")
        for name in ("window", "overlap"):
            value = getattr(self, name) or 0
            if self.unit == "samples" and value != round(value):
                raise ValueError(f"`{name}: {value:g}` is no whole number of samples; round it, or set unit: seconds")
        if self.unit == "seconds" and self.window is None:
            raise ValueError("`unit: seconds` needs `window`; set both")
        if self.mixup.mixup_alpha and self.target not in ("class", "values"):
            raise ValueError(f"`mixup` is for classes and values, not for `target: {self.target}`; leave it out")
        if self.mixup.quantize and self.target != "class":
            raise ValueError(f"`mixup.quantize` is for `target: class`, not for `target: {self.target}`; leave it out")
        if self.mixup.mixup_alpha and self.target == "class" and self.mixup.num_classes is None:
            raise ValueError("`mixup.num_classes` is missing; MixUp of classes needs their number")
        if self.target == "text" and self.tokenizer not in ("mu_law", "uniform"):
            raise ValueError(f"`target: text` needs ids of mu_law or uniform, not of `tokenizer: {self.tokenizer}`")

    def paths(self, name: str = "path") -> list[str]:
        """The entries of `path`, `eval_path` or `test_path`."""
        value = getattr(self, name)
        return [] if value is None else [value] if isinstance(value, str) else value


@dataclass
class PredictFlags:
    """How to forecast."""

    steps: int = key(256, "Signals: time steps to forecast after the end of each recording.", ge=1)
    samples: int = key(1, "Signals: forecasts of each recording.", ge=1)
    temperature: float = key(1.0, "Signals: temperature of sampling; 0: always the most probable.", ge=0)
    top_k: int | None = key(None, "Signals: sample from the k most probable ids. Default: from all.", ge=1)
    top_p: float | None = key(
        None, "Signals: sample from the most probable ids that sum to this probability.", gt=0, le=1
    )
    seed: int = key(0, "Signals: seed of sampling.", ge=0)
