"""Find the logged value of a metric's name: `val/loss`, `val_loss` and `eval_loss` are one metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.suggestions import nearest

# What transformers logs with every evaluation.
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
EVALUATION, TRAINING = ("val", "valid", "eval"), ("train",)


class UnknownMetric(ValueError):
    """A setting names a metric that is not logged, which only the first log or evaluation shows."""


def find_metric(name: str, metrics: Mapping[str, Any]) -> str | None:
    """Return the key of `metrics` that `name` stands for, or None.

    `/` and `_` are the same. `val/x`, `valid/x` and `eval/x` are the evaluation's `eval_x`, `train/x` is the training
    log's `x`. A bare `x` is `eval_x` if that is logged, otherwise `x`; if several evaluation sets have their own `x`
    (`eval_left_x`, `eval_right_x`), a bare name is ambiguous and stands for none of them.
    """
    known = {_word(metric): metric for metric in metrics}
    word = _word(name)
    ambiguous = any(is_evaluation(key) and key.endswith(f"_{word}") for key in known)
    if _split(word)[0] is None and f"eval_{word}" not in known and ambiguous:
        return None
    return next((known[reading] for reading in _readings(word) if reading in known), None)


def metric_or_error(name: str, metrics: Mapping[str, Any], asked_by: str) -> str:
    """Return `find_metric`, or raise an error that lists what is logged.

    Args:
        asked_by: The setting with the name, for the message: `early_stopping.monitor`.

    Raises:
        UnknownMetric: `name` stands for none of the metrics.
    """
    if (key := find_metric(name, metrics)) is not None:
        return key
    logged = [metric for metric in metrics if metric not in ("epoch", "step")]
    raise UnknownMetric(f"`{asked_by}: {name}` {_remedy(name, logged)}")


def _remedy(name: str, logged: Sequence[str]) -> str:
    words = {_word(metric): metric for metric in logged}
    close = nearest(normal_form(name), words, cutoff=0.5)
    remedy = f"did you mean `{words[close]}`? " if close is not None else ""
    return f"is not logged; {remedy}logged: {', '.join(sorted(set(logged))) or 'nothing'}"


def normal_form(name: str) -> str:
    """Return one spelling for all names of one metric: `val/loss` -> `eval_loss`; a bare name stays bare."""
    word = _word(name)
    kind, rest = _split(word)
    return word if kind is None else f"{kind}_{rest}"


def direction_of(name: str, declared: Mapping[str, str] | None = None) -> str | None:
    """`min` or `max`: whether less or more of a metric is better; None if that is not known.

    Args:
        name: As a user writes it, perhaps with the name of an evaluation set: `val/left_accuracy`.
        declared: Directions of the data's metrics by their own names. Losses need none.
    """
    rest = _split(_word(name))[1]
    for metric, direction in (declared or {}).items():
        if rest == _word(metric) or rest.endswith(f"_{_word(metric)}"):
            return direction
    return "min" if "loss" in rest.split("_") else None


def required_direction(name: str, given: str | None, declared: Mapping[str, str] | None, asked_by: str) -> str:
    """The direction that the user gave or that is known.

    Args:
        asked_by: The section that names the metric, for the message.

    Raises:
        ValueError: neither.
    """
    direction = given or direction_of(name, declared)
    if direction is None:
        raise ValueError(
            f"`{asked_by}.monitor: {name}`: whether less or more of it is better is not known; set "
            f"`{asked_by}.mode` to min or max"
        )
    return direction


def unknown_monitors(
    settings: Any, args: Any, sets: Sequence[str], metrics: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """The monitors that no evaluation will log: (key, name, reason); known once data and model are built.

    Names of loss terms, of training logs and of metrics that declare no directions are known only when they are logged.

    Args:
        sets: Names of the evaluation sets.
        metrics: Prefix of an evaluation's values -> its metric.
    """
    prefixes = ["eval"] if len(sets) == 1 else [f"eval_{name}" for name in sets]
    if not sets or any(not metric.directions for prefix, metric in metrics.items() if prefix in prefixes):
        return
    known = [f"{prefix}_{name}" for prefix in prefixes for name in ("loss", *SPEEDS)] + ["eval_loss"]
    known += [f"{prefix}_{name}" for prefix in prefixes if prefix in metrics for name in metrics[prefix].directions]
    for key, name, is_of_evaluation in monitors(settings, args):
        kind = _split(_word(name))[0]
        if kind == "train" or (kind is None and not is_of_evaluation):
            continue
        is_term = any(
            reading.startswith(f"{prefix}_loss_") for reading in _readings(_word(name)) for prefix in prefixes
        )
        if not is_term and find_metric(name, dict.fromkeys(known)) is None:
            yield key, name, _remedy(name, known)


def monitors(settings: Any, args: Any) -> Iterator[tuple[str, str, bool]]:
    """(key, metric's name, whether it can only be one of an evaluation)"""
    if settings.early_stopping is not None and settings.early_stopping.strict:
        yield "early_stopping.monitor", settings.early_stopping.monitor, False
    for name in settings.checkpointing.monitors if settings.checkpointing is not None else ():
        yield "checkpointing.monitor", name, False
    if args.metric_for_best_model is not None:
        yield "metric_for_best_model", args.metric_for_best_model, True
    plan = settings.schedule
    if plan is not None and plan.needs_metric is not None and not plan.follows_training_loss:
        yield "scheduler.monitor", plan.needs_metric, True


def check_directions(settings: Any, args: Any) -> None:
    """Check that the direction of every monitored metric is known, and set `args.greater_is_better` accordingly.

    transformers takes more of anything but `…loss` for better; that stays if `settings.directions` is None.

    Raises:
        ValueError: a direction is neither given nor known.
    """
    for section in ("early_stopping", "checkpointing"):
        if (config := getattr(settings, section)) is not None:
            modes = config.modes if section == "checkpointing" else {config.monitor: config.mode}
            for monitor, mode in modes.items():
                required_direction(monitor, mode, settings.directions, section)
    name = args.metric_for_best_model
    if name is None or settings.greater_is_better is not None or settings.directions is None:
        return
    direction = direction_of(name, settings.directions)
    if direction is None:
        raise ValueError(
            f"`metric_for_best_model: {name}`: whether less or more of it is better is not known; set "
            "`greater_is_better`"
        )
    args.greater_is_better = direction == "max"


def is_evaluation(key: str) -> bool:
    """Whether a logged key belongs to an evaluation."""
    return key.startswith("eval_")


class LatestMetrics:
    """The newest value of every logged name, of training and of evaluation."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def begin(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        """Start from the values that a resumed run had logged before its checkpoint."""
        self.values = {}
        for record in log_history:
            self.add(record)

    def add(self, logs: Mapping[str, Any]) -> None:
        self.values |= {name: float(value) for name, value in logs.items() if isinstance(value, (int, float))}

    def may_still_come(self, name: str) -> bool:
        """Whether a metric may be logged later, because no evaluation, or no training step, has been logged yet."""
        kind = _split(_word(name))[0]
        evaluated = any(map(is_evaluation, self.values))
        return (kind != "train" and not evaluated) or (kind != "eval" and "loss" not in self.values)


def _word(name: str) -> str:
    return name.replace("/", "_")


def _split(word: str) -> tuple[str | None, str]:
    """`val_loss` -> (`eval`, `loss`); a bare word -> (None, itself)."""
    prefix, _, rest = word.partition("_")
    kind = "eval" if prefix in EVALUATION else "train" if prefix in TRAINING else None
    return (kind, rest) if kind and rest else (None, word)


def _readings(word: str) -> tuple[str, ...]:
    """Return the keys that a name may stand for, the likeliest first. The last one covers an evaluation set that is
    called `val`, and a training metric whose own name begins with `train_`."""
    kind, rest = _split(word)
    if kind == "eval":
        return f"eval_{rest}", f"eval_{word}"
    return (rest, word) if kind == "train" else (f"eval_{word}", word)
