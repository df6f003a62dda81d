"""Pairs of settings that can contradict each other, and what follows from the one that has precedence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.errors import ConfigError, Problems, shown
from loader.resolve.run_config import GLOBAL, TRAINING_METRICS
from loader.schema.installed import REQUIRED
from loader.schema.keys import COMPONENTS, ROOT, Key, component_module, keys_of, scalar_keys
from loader.sources.config_tree import CLI, DEFAULT, SET, Node, Origin, find, node_of

USERS_FIRST = 1  # the layers up to this one are built-in and default.yaml
PLATEAUS = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau")
# Schedules that neither end anywhere nor fall towards anything.
WITHOUT_HORIZON = ("constant", "constant_with_warmup", *PLATEAUS)
SHARES = ("logging_steps", "save_steps", "eval_steps", "warmup_steps", "warmup_ratio")
EVALUATION = ("dataset.eval_fraction", "do_eval", "eval_strategy", "check_val_every_n_epoch")


# A default that follows is noted too.
NOTED_DEFAULTS = ("lr_scheduler_type", "eval_strategy", "save_strategy", "report_to")


def is_by_user(origin: Origin) -> bool:
    """Whether a value is from the command line or a file that is not one of Keel's own."""
    return origin != DEFAULT and not Path(origin.source).absolute().is_relative_to(ROOT / "configs")


class Settings:
    """The merged tree and its layers: values, and which of two settings has precedence."""

    def __init__(self, tree: Node, layers: list[Node], problems: Problems):
        self.tree, self.layers, self.problems = tree, layers, problems
        flags = [index for index, layer in enumerate(layers) if layer.origin in (CLI, SET)]
        self.command_line = flags[0] if flags else len(layers)

    def __getitem__(self, path: str) -> Any:
        """The value of a key, or its default; None for a key of a section that is not set."""
        node, (section, _, name) = find(self.tree, path), path.partition(".")
        if node is not None:
            return node.plain()
        key = self.component_keys(section).get(name) if section in COMPONENTS else scalar_keys().get(path)
        return None if key is None or key.default is REQUIRED else key.default

    def component_keys(self, section: str) -> dict[str, Key]:
        """The keys of the chosen component; none if it cannot be imported, which is reported where it is built."""
        name = find(self.tree, f"{section}.name")
        try:
            return keys_of(component_module(section, name.value).Config) if name and isinstance(name.value, str) else {}
        except ConfigError:
            return {}

    def number(self, path: str) -> float:
        """The value as a number; 0 for anything that the type check will refuse."""
        value = self[path]
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return 0
        try:
            return float(value)
        except (ValueError, OverflowError):
            return 0

    def level(self, *paths: str) -> float:
        """The highest layer that gives one of these keys; flags and --set are one layer.

        What a named set contains (`optimizer: adafactor`) ranks half a level below the file that names it.
        """
        levels = [0.0]
        for path in paths:
            given = [(index, node) for index, layer in enumerate(self.layers) if (node := find(layer, path))]
            if given:
                index, node = given[-1]
                is_of_set = node.origin.source != self.layers[index].origin.source
                if index > USERS_FIRST:  # defaults are all alike
                    levels.append(min(index, self.command_line) - 0.5 * is_of_set)
        return max(levels)

    def is_flag(self, path: str) -> bool:
        return self.level(path) >= self.command_line

    def follow(self, path: str, value: Any, winner: str) -> None:
        """Give `path` a value that follows from the setting `winner`, and note it."""
        before, other = find(self.tree, path), find(self.tree, winner)
        origin = other.origin if other is not None else DEFAULT
        section, _, name = path.rpartition(".")
        parent = self.tree
        if section:  # a copy: the layers keep what their files say
            earlier = find(self.tree, section)
            parent = Node(dict(earlier.value), earlier.origin, replaces=earlier.replaces)
            self.tree.value[section] = parent
        parent.value[name] = node_of(value, origin)
        if path == "lr_scheduler_type":
            self.tree.value.pop("scheduler", None)  # its options were those of the earlier schedule
        if is_by_user(origin) and (before is not None and before.origin != DEFAULT or path in NOTED_DEFAULTS):
            was = "" if before is None or before.is_mapping else f": {shown(before.plain())}"
            by = shown(self[winner]) if not isinstance(self[winner], dict) else "given"
            source = f" ({before.origin})" if before is not None else ""
            key = scalar_keys().get(path)
            is_reset = key is not None and value == key.default and not isinstance(value, (str, bool))
            now = "is dropped" if is_reset or value in (None, {}) else f"becomes {shown(value)}"
            self.problems.note(f"`{path}{was}`{source} {now}: `{winner}: {by}` ({origin}) has precedence")


@dataclass(frozen=True)
class Rule:
    """Two settings that contradict each other.

    Attributes:
        key: The setting that gives way to a later one of `against`.
        when: Whether they contradict each other.
        becomes: The value of `key` then, or a function that computes it.
        problem: What is wrong, for the error line; None: nothing, if `key` is not the earlier one.
        opposite: The setting that gives way if `key` is in a later layer, and its value.
        yields: Whether `key` gives way within a layer, too, instead of being a problem.
    """

    key: str
    against: tuple[str, ...]
    when: Callable[[Settings], Any]
    becomes: Any
    problem: str | None
    opposite: tuple[str, Any] | None = None
    yields: Callable[[Settings], bool] = lambda settings: False

    def apply(self, settings: Settings) -> None:
        if not self.when(settings):
            return
        winner = max(self.against, key=settings.level)
        mine, other = settings.level(self.key), settings.level(winner)
        is_later = math.ceil(mine) > math.ceil(other)  # what a named set contains counts as its file
        for path, value, by, gives_way in (
            (self.key, self.becomes, winner, other > mine or (mine == other and self.yields(settings))),
            (*(self.opposite or ("", None)), self.key, self.opposite is not None and is_later),
        ):
            if gives_way:
                settings.follow(path, value(settings) if callable(value) else value, by)
                return
        if self.problem is not None:
            places = []
            for path in (self.key, winner):
                node, value = find(settings.tree, path), settings[path]
                text = "" if isinstance(value, dict) else f": {shown(value)}"
                places.append(f"`{path}{text}`{node.origin.place if node is not None else ' (default)'}")
            settings.problems.add(f"{places[0]} {self.problem.format(places[1])}")


def _shorter_warmup(length: str) -> Callable[[Settings], int]:
    """The warm-up in proportion to the new length, or if the old one is not known, a tenth of the new one."""

    def steps(settings: Settings) -> int:
        new, warm = int(settings.number(length)), settings.number("warmup_steps")
        values = [layer.value[length].value for layer in settings.layers if length in layer.value]
        old = next((value for value in reversed(values[:-1]) if isinstance(value, int) and value > warm), None)
        return min(new - 1, round(warm * new / old)) if old else new // 10

    return steps


def backends(value: object) -> list[str]:
    """The reporting backends in use."""
    words = value if isinstance(value, list) else [value]
    return [word for word in words if isinstance(word, str) and word != "none"]


def _has_no_schedule(settings: Settings) -> bool:
    """Whether the schedule is `none` or switched off by `decay_lr`, and not named: its keys are then left unused."""
    return settings.tree.value["lr_scheduler_type"].text == "none"


def _is_endless(settings: Settings) -> bool:
    return settings.number("max_steps") <= 0 and settings.number("num_train_epochs") == -1


def _never_evaluates(settings: Settings) -> bool:
    strategy = settings["eval_strategy"] if "eval_strategy" in settings.tree.value else None
    if settings["dataset.eval_fraction"] == 0 or strategy in (False, "no"):
        return True
    return settings["do_eval"] is False and (strategy is None or settings["check_val_every_n_epoch"] is not None)


def _stops_blindly(settings: Settings) -> bool:
    monitor = settings["early_stopping.monitor"] or "eval_loss"
    by_epoch = settings["early_stopping.check_on_train_epoch_end"] is True
    is_blind = settings["early_stopping"] is not None and _never_evaluates(settings)
    return is_blind and not (monitor in TRAINING_METRICS and by_epoch)


def _plateau_is_blind(settings: Settings) -> bool:
    name = settings["lr_scheduler_type"]
    follows_training = name == "ReduceLROnPlateau" and settings["scheduler.monitor"] in TRAINING_METRICS
    return name in PLATEAUS and not follows_training and _never_evaluates(settings)


def _saves_never(settings: Settings) -> bool:
    """Whether a given save_steps decides neither about saves nor about evaluations."""
    evaluates = not _never_evaluates(settings) and settings["eval_strategy"] in (None, "no", "steps")
    return settings["save_strategy"] != "steps" and (settings["eval_steps"] is not None or not evaluates)


def _chooses_best(settings: Settings) -> bool:
    return settings["load_best_model_at_end"] is True and not _never_evaluates(settings)


def _saves_with_evaluations(settings: Settings) -> str:
    """The `save_strategy` that saves what is evaluated, which `load_best_model_at_end` chooses among."""
    if settings["check_val_every_n_epoch"] is not None:
        return "epoch" if settings["check_val_every_n_epoch"] == 1 else "best"
    return settings["eval_strategy"] if "eval_strategy" in settings.tree.value else "steps"


def _saves_between_evaluations(settings: Settings) -> bool:
    """Whether steps are saved that are not evaluated, as transformers decides it."""
    if not _chooses_best(settings) or {settings["save_strategy"], _saves_with_evaluations(settings)} != {"steps"}:
        return False
    saves, evaluations = settings.number("save_steps"), settings.number("eval_steps")
    if settings["eval_steps"] is None or min(saves, evaluations) <= 0:
        return False
    return (saves < 1) != (evaluations < 1) or round(saves * 1e6) % round(evaluations * 1e6) != 0


NEEDS_EVALUATION = "needs evaluation ({}); hold data out, and set do_eval"
RULES = (
    Rule(
        "warmup_steps", ("max_steps",), lambda s: 1 <= s.number("warmup_steps") >= s.number("max_steps") > 0,
        _shorter_warmup("max_steps"), "is not shorter than the run ({}); the learning rate would never be reached",
    ),
    Rule(
        "warmup_steps", ("lr_decay_iters",), lambda s: 1 <= s.number("warmup_steps") >= s.number("lr_decay_iters") > 0,
        _shorter_warmup("lr_decay_iters"), "is not shorter than the schedule ({}); raise one or lower the other",
        ("lr_decay_iters", None),
    ),
    Rule(
        "min_epochs", ("num_train_epochs",),
        lambda s: s.number("min_epochs") > s.number("num_train_epochs") > 0 >= s.number("max_steps"),
        lambda s: s["num_train_epochs"], "is more than {}; raise one or lower the other",
        ("num_train_epochs", lambda s: s["min_epochs"]),
    ),
    Rule(
        "lr_scheduler_type", ("num_train_epochs",),
        lambda s: _is_endless(s) and s["lr_scheduler_type"] not in WITHOUT_HORIZON and s["lr_decay_iters"] is None
        and not set(s["scheduler"] or ()) - {"interval", "frequency", "monitor"},
        "constant", "decays to the end of the run, and {} has none; set lr_decay_iters, or lr_scheduler_type constant",
    ),
    *(
        Rule(
            name, ("num_train_epochs",), lambda s, name=name: _is_endless(s) and 0 < s.number(name) < 1,
            lambda s, name=name: scalar_keys()[name].default, "is a share of a run without end ({})",
        )
        for name in SHARES
    ),
    *(
        Rule(
            name, ("lr_scheduler_type",),
            lambda s, name=name, kinds=kinds: s[name] is not None and s["lr_scheduler_type"] in kinds,
            None, "has no effect: {} does not fall towards an end", ("lr_scheduler_type", "cosine"), _has_no_schedule,
        )
        for name, kinds in (
            ("lr_decay_iters", WITHOUT_HORIZON), ("min_lr", [n for n in WITHOUT_HORIZON if n not in PLATEAUS]),
        )
    ),
    Rule(
        "min_lr", ("learning_rate",), lambda s: s.number("min_lr") > s.number("learning_rate"),
        None, "is above {}; lower it",
    ),
    Rule(
        "min_lr", ("resume_lr",), lambda s: s["resume_lr"] is not None and s.number("min_lr") > s.number("resume_lr"),
        None, "is above {}; lower it too",
    ),
    Rule(
        "fp16", ("bf16",), lambda s: s["fp16"] and s["bf16"], False, "and {} are both true; keep one", ("bf16", False)
    ),
    *(
        Rule(
            "weights_dtype", (key,), lambda s, key=key: s["weights_dtype"] in ("float16", "float64") and s[key],
            None, "and {} exclude each other; keep one", (key, False),
        )
        for key in ("bf16", "fp16")
    ),
    *(
        Rule(
            key, ("use_cpu", "accelerator"),
            lambda s, key=key: s[key] and (s["use_cpu"] or s["accelerator"] == "cpu"), False, "needs a GPU ({})",
        )
        for key in ("fp16", "tf32")
    ),
    Rule("early_stopping", EVALUATION, _stops_blindly, None, NEEDS_EVALUATION),
    *(
        Rule(
            f"checkpointing.{key}", EVALUATION,
            lambda s, key=key: s["checkpointing.monitor"] and s[f"checkpointing.{key}"] and _never_evaluates(s),
            value, problem,
        )
        for key, value, problem in (
            ("mode", "min", None), ("save_top_k", -1, None), ("monitor", None, NEEDS_EVALUATION),
        )
    ),
    Rule(
        "load_best_model_at_end", EVALUATION, lambda s: s["load_best_model_at_end"] is True and _never_evaluates(s),
        False, NEEDS_EVALUATION,
    ),
    Rule(
        "save_strategy", EVALUATION, lambda s: s["save_strategy"] == "best" and _never_evaluates(s),
        "steps", NEEDS_EVALUATION,
    ),
    Rule(
        "save_strategy", ("eval_strategy", "check_val_every_n_epoch", "load_best_model_at_end"),
        lambda s: _chooses_best(s) and s["save_strategy"] not in ("best", _saves_with_evaluations(s)),
        _saves_with_evaluations,
        "and {} differ, and `load_best_model_at_end` needs saves where evaluations are; make them the same",
        ("load_best_model_at_end", False),
    ),
    Rule(
        "save_steps", ("eval_steps", "load_best_model_at_end"), _saves_between_evaluations,
        lambda s: s["eval_steps"],
        "is no multiple of {}, and `load_best_model_at_end` needs saves where evaluations are; make it one",
        ("eval_steps", lambda s: s["save_steps"]),
    ),
    Rule("lr_scheduler_type", EVALUATION, _plateau_is_blind, "constant", NEEDS_EVALUATION),
    Rule(
        "checkpointing", ("save_strategy",),
        lambda s: s["save_strategy"] == "best" and s["checkpointing"] is not None,
        None, "and {} both say which checkpoints are best; keep one", ("save_strategy", "no"),
    ),
    Rule(
        "checkpointing", ("save_strategy",),
        lambda s: s["checkpointing"] is not None and s["save_strategy"] in (False, "no"), None, None,
    ),
    Rule(
        "dataloader_persistent_workers", ("dataloader_num_workers",),
        lambda s: s["dataloader_persistent_workers"] is True and s.number("dataloader_num_workers") == 0,
        False, "needs worker processes; set dataloader_num_workers above 0",
    ),
    Rule(
        "ema", ("using_ema",), lambda s: s["ema"] is not None and s["using_ema"] is False,
        None, "has no effect without `using_ema`; set that, or leave it out",
    ),
    *(
        Rule(
            f"resume_{key}", (f"{name}",),
            lambda s, key=f"resume_{key}", name=name: s[key] is not None and s[key] != s[name] and s.is_flag(name),
            None, None,
        )
        for key, name in (("lr", "learning_rate"), ("weight_decay", "weight_decay"))
    ),
    Rule(
        "tune_batch_size", (GLOBAL,), lambda s: s["tune_batch_size"] is True and s[GLOBAL] is not None,
        False, "and {} both choose the batch size; keep one", (GLOBAL, None),
    ),
    *(
        Rule(
            name, ("bits",),
            lambda s, name=name: s["use_quantization"] is True and s["bits"] == 8 and s.level(name) > USERS_FIRST,
            lambda s, name=name: scalar_keys()[name].default, "has no effect with {}; it is of 4 bits",
        )
        for name in ("quant_type", "double_quant")
    ),
    # Flags that act on what another layer has switched off; YAML may hold them as defaults of a project.
    *(
        Rule(
            key, (flag,), lambda s, flag=flag, is_off=is_off: s.is_flag(flag) and is_off(s), on,
            "gives {} no effect; keep one",
        )
        for flag, key, on, is_off in (
            ("logging_steps", "logging_strategy", "steps", lambda s: s["logging_strategy"] not in ("steps", False)),
            ("save_steps", "save_strategy", "steps", _saves_never),
            (
                "save_total_limit", "save_strategy", "steps",
                lambda s: s["save_strategy"] in (False, "no") and s["checkpointing"] is None,
            ),
            (
                "logging_dir", "report_to", ["tensorboard"],
                lambda s: not {"tensorboard", "all"} & set(backends(s["report_to"])),
            ),
            (
                "eval_steps", "eval_strategy", "steps",
                lambda s: "eval_strategy" in s.tree.value and s["eval_strategy"] != "steps",
            ),
            ("eval_steps", "do_eval", True, lambda s: s["do_eval"] is False and "eval_strategy" not in s.tree.value),
        )
    ),
)  # fmt: skip
