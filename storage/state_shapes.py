"""What the small state files of a checkpoint look like: other values in them are no run's, whatever a manifest says.

A shape is a dict (a mapping with these keys, each value of its shape), a list of one shape (any number of such values),
a tuple of shapes (a list of just so many), or a function that says whether it is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage import safe_read
from storage.manifest import UNREADABLE

MOST = 2**53  # as far as JSON's numbers count; a step, an epoch or a sum of seconds has less
INFINITE = ("inf", "-inf", "nan")


def fault(checkpoint: Path) -> str | None:
    """`has a damaged trainer_state.json (epoch)`: the first file that no run has written so; None: all could be."""
    found: dict[str, Any] = {}
    for name, shape in FILES.items():
        try:
            found[name] = safe_read.read_json(checkpoint / name)
        except FileNotFoundError:
            if name in NEEDED:
                return f"has no {name}"
            continue
        except (safe_read.NoFile, ValueError):
            return f"has a damaged {name}"
        except OSError as error:
            return f"has {name}, which {UNREADABLE}: {error.strerror}"
        if (place := misfit(found[name], shape)) is not None:
            return f"has a damaged {name}" + f" ({place})" * bool(place)
    if "scheduler.json" in found and found["scheduler.json"]["taken"] > found["trainer_state.json"]["global_step"]:
        return "has a scheduler.json of a later step"
    return None


def misfit(value: Any, shape: Any, place: str = "") -> str | None:
    """Where a value is not of its shape: `progress.wait`, empty for the value itself; None: nowhere."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return place
        parts = [(f"{place}.{key}".strip("."), value.get(key), each) for key, each in shape.items()]
    elif isinstance(shape, (list, tuple)):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            return place
        shapes = shape if isinstance(shape, tuple) else shape * len(value)
        parts = [(f"{place}[{number}]", *pair) for number, pair in enumerate(zip(value, shapes, strict=True))]
    else:
        return None if shape(value) else place
    found = (misfit(each, its, where) for where, each, its in parts)
    return next((where for where in found if where is not None), None)


# ---- single values ----


def is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < MOST


def is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def is_positive(value: Any) -> bool:
    return is_count(value) and value > 0


def is_number(value: Any) -> bool:
    """Also one that is not finite: as Python's json writes it, or as `trainer.serialization.state_dict_io` does."""
    if isinstance(value, dict):
        return value.get("$float") in INFINITE and len(value) == 1
    return type(value) is float or is_whole(value)


def are_numbers(value: Any) -> bool:
    return misfit(value, [is_number]) is None if isinstance(value, list) else is_number(value)


def is_finite(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or is_whole(value)


def is_epoch(value: Any) -> bool:
    return is_finite(value) and 0 <= value < MOST


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_rate(value: Any) -> bool:
    """A learning rate, or a tensor of it."""
    return is_number(value) or (isinstance(value, dict) and is_text(value.get("$tensor")))


def maybe(shape: Any) -> Callable[[Any], bool]:
    """null, or a value of the shape."""
    return lambda value: value is None or misfit(value, shape) is None


def just(shape: dict[str, Any]) -> Callable[[Any], bool]:
    """A mapping with these keys and no others."""
    return lambda value: misfit(value, shape) is None and value.keys() == shape.keys()


def each_value(shape: Any) -> Callable[[Any], bool]:
    """A mapping of any keys to values of the shape."""
    return lambda value: isinstance(value, dict) and all(misfit(each, shape) is None for each in value.values())


# ---- the files ----

# Of `trainer.dataloading.resume_position`, `trainer.callbacks.model_checkpoint` and `trainer.callbacks.early_stopping`,
# which keep them among transformers' callbacks.
POSITION, KEPT, STOPPING = "position in the data", "kept checkpoints", "early stopping on "

OF_POSITION = {
    "steps_per_epoch": is_positive,
    "samples_per_epoch": is_positive,
    "samples_per_step": is_positive,
    "steps_before": is_whole,
}
OF_MONITOR = {"mode": is_text, "best": [(is_finite, is_count)], "checked": is_count, "metric": maybe(is_text)}
OF_KEPT = {
    "monitors": each_value(OF_MONITOR),
    "saved": [is_count],
    "others": [is_count],
    "stopgaps": [is_count],
    "resumable": maybe([is_count]),  # not known to older versions
    "ours_at": is_whole,
    "others_at": is_whole,
    "held_at": is_whole,
}
OF_PROGRESS = {
    "metric": maybe(is_text),
    "best": maybe(is_number),
    "best_step": maybe(is_count),
    "wait": is_count,
    "checked_step": is_count,
    "reason": maybe(is_text),
}
OF_STOPPING = {"progress": just(OF_PROGRESS), "settings": each_value(lambda value: True), "epoch_ended": is_flag}


def is_record(value: Any) -> bool:
    """A line of the log: a step, and whatever else was logged."""
    if not isinstance(value, dict) or not is_count(value.get("step")):
        return False
    has_losses = all(is_number(each) for name, each in value.items() if name.endswith("loss"))
    return has_losses and not any(type(each) is int and abs(each) >= MOST for each in value.values())


def is_position(value: Any) -> bool:
    return just(OF_POSITION)(value)


def are_callbacks(value: Any) -> bool:
    """What callbacks keep, by name; transformers' own control is always among them."""
    if not isinstance(value, dict) or not isinstance(value.get("TrainerControl"), dict):
        return False
    stopping = {name: OF_STOPPING for name in value if name.startswith(STOPPING)}
    known = {POSITION: is_position, KEPT: OF_KEPT, **stopping}
    return all(misfit(value[name], shape) is None for name, shape in known.items() if name in value)


STATE = {
    "global_step": is_count,
    "max_steps": is_whole,
    "epoch": maybe(is_epoch),
    "train_batch_size": maybe(is_positive),
    "total_flos": maybe(is_number),
    "num_input_tokens_seen": maybe(is_count),
    "log_history": [is_record],
    "best_metric": maybe(is_number),
    "best_global_step": maybe(is_count),
    "best_model_checkpoint": maybe(is_text),
    "stateful_callbacks": are_callbacks,
}
INTERVAL = {
    "last_logged": is_count,
    "loss": is_number,
    "followed_loss": is_number,
    "followed_steps": is_count,
    "terms": each_value((is_number, is_epoch)),
    "norms": (is_count, is_count),
    "skipped": is_count,
    "due": lambda value: value == {} or misfit(value, OF_DUE) is None,
}
OF_CURVE = {  # of a schedule that follows a metric; another's is empty
    "best": maybe(is_number),
    "num_bad_epochs": maybe(is_count),
    "num_good_epochs": maybe(is_count),
    "cooldown_counter": maybe(is_whole),
    "warmup_counter": maybe(is_whole),
    "reset_start": maybe(is_whole),
    "rates": maybe([is_number]),
    "average": maybe(each_value(are_numbers)),
}
SCHEDULE = {
    "name": is_text,
    "taken": is_count,
    "total_steps": maybe(is_count),
    "course": maybe(each_value(lambda value: is_flag(value) or is_finite(value))),
    "metrics_seen": is_count,
    "base_lrs": [is_rate],
    "last_rates": [is_rate],
    "curve": OF_CURVE,
}
OF_DUE = {
    "evaluate": is_flag,
    "save": is_flag,
    "epoch": is_flag,
    "stop": is_flag,
    "grad_norm": maybe(is_number),
    "learning_rate": maybe(is_number),
}
FILES = {
    "trainer_state.json": STATE,
    "log_interval.json": INTERVAL,
    "scheduler.json": SCHEDULE,
    "ema.json": {"updates": is_count},
    "skipped_steps.json": {"in_a_row": is_count, "skipped": is_count},
    "resumed.json": [lambda value: isinstance(value, dict)],
}
NEEDED = ("trainer_state.json", "log_interval.json")
