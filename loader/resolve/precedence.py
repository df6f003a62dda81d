"""Settings that exclude or contradict one another: that of the later layer wins, the other follows, with a note.

Only two settings that stand in one file, or both on the command line, and contradict each other are a problem. What
remains describes the run, so that a printed configuration, read again, is the same run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from loader.errors import ConfigError, Problems, shown
from loader.resolve.global_batch_size import settle_global_batch
from loader.resolve.rules import RULES, USERS_FIRST, Settings, backends, is_by_user
from loader.resolve.run_config import GLOBAL
from loader.schema.keys import component_module, keys_of, scalar_keys
from loader.schema.process_arguments import ProcessArguments
from loader.sources import layers
from loader.sources.config_tree import DEFAULT, Node, Origin, find, layer_index, leaves

OWN_RATE = 1e-3  # of an optimizer whose `lr` is null; Adafactor then takes its relative steps instead
WARM_UPS = ("warmup_steps", "warmup_ratio", "warmup_epochs")


def resolve_conflicts(tree: Node, layers: list[Node], problems: Problems, is_saved: bool = False) -> None:
    """Resolve conflicts in place; two settings of one layer that contradict each other are a problem.

    Args:
        is_saved: The settings of an earlier run, which may have had another number of processes.
    """
    settings = Settings(tree, layers, problems)
    _one_of(settings, ("max_steps", "num_train_epochs"))
    _one_of(settings, WARM_UPS)
    _evaluation(tree, layers, problems)
    _saving(tree, layers)
    _own_rate(tree, layers)
    _logger(tree, layers, problems)
    if is_saved:
        return
    _launched_precision(settings)
    for rule in RULES:
        rule.apply(settings)
    _shared_by_model_and_data(settings)
    _without_effect(settings)
    if GLOBAL in tree.value and tree.value[GLOBAL].value is not None:
        settle_global_batch(tree, layers, problems)


def _launched_precision(settings: Settings) -> None:
    """`accelerate launch --mixed_precision bf16` sets the key `bf16`, unless a precision is configured."""
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    if name in ("bf16", "fp16") and settings.level("bf16", "fp16") <= USERS_FIRST:
        settings.tree.value[name] = Node(True, Origin("launcher"))
        settings.problems.note(f"accelerate launch --mixed_precision {name} is `{name}: true`")


def _one_of(settings: Settings, names: tuple[str, ...]) -> None:
    """Of several keys that set one length, keep that of the latest layer, and of equals the first named.

    Zero in a later layer removes the length, and so does -1 epochs, which is a run without end.
    """
    tree = settings.tree
    ranks = {name: layer_index(settings.layers, name) for name in names}
    top = max(ranks.values())
    latest = [name for name in names if ranks[name] == top > USERS_FIRST]
    given = [name for name in names if settings.number(name) > 0]
    dropped: list[str] = []
    if latest and not set(latest) & set(given) and latest != ["max_steps"]:
        dropped = [name for name in given if name not in latest]
    elif len(given) > 1:
        winner = max(given, key=lambda name: (ranks[name], -names.index(name)))
        dropped = [name for name in given if name != winner]
        rivals = [name for name in dropped if ranks[name] == ranks[winner] > USERS_FIRST]
        if rivals:
            places = [f"`{name}`{tree.value[name].origin.place}" for name in (winner, *rivals)]
            settings.problems.add(f"{' and '.join(places)} both set the same length; keep one")
    for name in dropped:
        settings.follow(name, scalar_keys()[name].default, latest[0] if latest else winner)


def _shared_by_model_and_data(settings: Settings) -> None:
    """A key that model and data both have (`block_size`) is one value: the later layer gives it to both."""
    for name in settings.component_keys("model").keys() & settings.component_keys("dataset").keys():
        values = {path: settings[path] for path in (f"model.{name}", f"dataset.{name}")}
        if None in values.values() or len({str(value) for value in values.values()}) == 1:
            continue
        model, data = values
        levels = settings.level(model), settings.level(data)
        if levels[0] == levels[1]:
            places = [f"`{path}: {values[path]}`{find(settings.tree, path).origin.place}" for path in (model, data)]
            settings.problems.add(f"{places[0]} contradicts {places[1]}; leave `{model}` out")
        else:
            loser, winner = (model, data) if levels[0] < levels[1] else (data, model)
            settings.follow(loser, values[winner], winner)


def _evaluation(tree: Node, layers: list[Node], problems: Problems) -> None:
    """`eval_strategy`, `check_val_every_n_epoch`, `do_eval` and `eval_steps`: the latest layer wins."""
    ranks = {
        name: layer_index(layers, name)
        for name in ("eval_strategy", "do_eval", "eval_steps", "check_val_every_n_epoch")
    }
    _every_n_epochs(tree, ranks, problems)
    strategy = tree.value.get("eval_strategy")
    if strategy is None:
        return
    do_eval, steps = tree.value["do_eval"], tree.value["eval_steps"]
    if do_eval.value is False and ranks["do_eval"] >= ranks["eval_strategy"]:
        tree.value["eval_strategy"] = Node("no", do_eval.origin)
    elif strategy.value in (False, "no"):
        for name, node, asks in (("do_eval", do_eval, do_eval.value is True), ("eval_steps", steps, steps.value)):
            if asks and ranks[name] > ranks["eval_strategy"]:
                tree.value["eval_strategy"] = Node("steps", node.origin)


def _every_n_epochs(tree: Node, ranks: dict[str, int], problems: Problems) -> None:
    """`check_val_every_n_epoch` against the two other keys that say when to evaluate."""
    every, mine = tree.value["check_val_every_n_epoch"], ranks["check_val_every_n_epoch"]
    if every.value is None:
        return
    for name in ("eval_steps", "eval_strategy"):
        node = tree.value.get(name)
        if node is None or node.value is None:
            continue
        agrees = name == "eval_strategy" and node.value == "epoch" and ranks[name] <= mine
        if agrees:
            continue
        if ranks[name] == mine > USERS_FIRST:
            problems.add(
                f"`check_val_every_n_epoch`{every.origin.place} and `{name}`{node.origin.place} both say when to "
                "evaluate; keep one"
            )
        elif ranks[name] > mine:
            tree.value["check_val_every_n_epoch"] = Node(None, DEFAULT)
        elif name == "eval_strategy":
            del tree.value[name]
        else:
            tree.value[name] = Node(None, DEFAULT)


def _saving(tree: Node, layers: list[Node]) -> None:
    """`checkpointing` alone decides when to save, unless the user also sets save_strategy or save_steps."""
    section = tree.value.get("checkpointing")
    if section is None or section.value is None:
        return
    if max(layer_index(layers, "save_strategy"), layer_index(layers, "save_steps")) <= USERS_FIRST:
        tree.value["save_strategy"] = Node("no", section.origin)


def _own_rate(tree: Node, layers: list[Node]) -> None:
    """`optimizer: {lr: null}` against `learning_rate`: the later one wins."""
    null_rate = find(tree, "optimizer.lr")
    if null_rate is None or null_rate.value is not None:
        return
    section = tree.value["optimizer"].value
    adafactor = tree.value["optim"].value == "adafactor"
    # In a named preset, `lr: null` was not chosen by the user: any learning rate that was set has precedence.
    least = USERS_FIRST if tree.value["optimizer"].replaces else layer_index(layers, "optimizer.lr")
    if layer_index(layers, "learning_rate") > least:
        del section["lr"]
    elif adafactor:
        section.setdefault("relative_step", Node(True, null_rate.origin))
        section.setdefault("scale_parameter", Node(True, null_rate.origin))
        if layer_index(layers, "lr_scheduler_type") <= USERS_FIRST:  # the relative steps are its schedule
            tree.value["lr_scheduler_type"] = Node("constant", null_rate.origin)
    else:
        del section["lr"]
        tree.value["learning_rate"] = Node(OWN_RATE, null_rate.origin)


def _logger(tree: Node, layers: list[Node], problems: Problems) -> None:
    """`logging: {logger_type, name}` against `report_to` and `run_name`, which have the same meaning."""
    kind, name = find(tree, "logging.logger_type"), find(tree, "logging.name")
    ranks = layer_index(layers, "report_to"), layer_index(layers, "logging.logger_type")
    if kind is not None:
        meanings = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", None: "none", "CSVLogger": "none"}
        known = isinstance(kind.value, str | None)  # other values are refused when the section is checked
        meant, report_to = meanings.get(kind.value) if known else None, tree.value["report_to"]
        agree = backends(report_to.plain()) == backends(meant)
        if ranks[0] == ranks[1] > USERS_FIRST and not agree:
            problems.add(
                f"`logging.logger_type`{kind.origin.place} and `report_to`{report_to.origin.place} name two loggers; "
                "keep one"
            )
        elif ranks[0] > ranks[1] and not agree:
            del tree.value["logging"].value["logger_type"]
        elif meant is not None and not agree:
            tree.value["report_to"] = Node([Node(meant, kind.origin)], kind.origin)
    reports = backends(tree.value["report_to"].plain())
    later = layer_index(layers, "run_name") > layer_index(layers, "logging.name")
    if name is not None and name.value is not None and reports and not later:
        tree.value["run_name"] = Node(name.value, name.origin, name.text)


def _without_effect(settings: Settings) -> None:
    """A key that needs another: remove it if a later layer has switched that off; otherwise it is a problem."""
    for key, declared in scalar_keys().items():
        switch, wanted = declared.needs, declared.needs_value
        node = settings.tree.value.get(key) if switch is not None else None
        is_process_key = key in keys_of(ProcessArguments)
        neutral = (declared.default,) if is_process_key else (None, False, {}, [])
        if node is None or node.plain() in neutral:
            continue
        if switch == "report_to":
            reports = backends(settings[switch])
            is_on = bool(reports) if wanted is None else bool({wanted, "all"} & set(reports))
            decided = settings.level(switch, "logging.logger_type")
        else:
            is_on, decided = bool(settings[switch]), settings.level(switch)
        if is_on:
            continue
        if decided > max(settings.level(key), USERS_FIRST):
            if is_process_key:
                settings.follow(key, declared.default, switch)
            else:
                del settings.tree.value[key]
        elif not is_process_key:  # those are checked with their types, see `static_checks.check_process_keys`
            needs = f"`{switch}`" if wanted is None else f"`{switch}: {wanted}`"
            settings.problems.add(
                f"`{key}`{node.origin.place} has no effect without {needs}; set that, or leave it out"
            )


# ---- a task or model file that a later layer names, against what training files say for another component ----

CHOICES = (("dataset", "task", "task_name"), ("model", "model", "model_config"))
# Keys that say which weights a model starts from.
WEIGHTS = ("model_name_or_path", "is_pretrained", "load_pretrain", "load_optimizer")


def drop_superseded(below: Sequence[Node], above: Sequence[Node], problems: Problems) -> None:
    """Drop, in place, what training files say for a component that a later layer has replaced by another.

    That is the whole section if it names that component, otherwise those of its keys that the new one does not have;
    of a model also the weights that it starts from. Each gets a note if the user made the choice.

    Args:
        below, above: Layers below and above the task and model files; the last two are the command line.
    """
    for section, kind, key in CHOICES:
        names = _chosen(section, kind, key, [*below, *above])[len(below) :]
        last = max((index for index in range(1, len(names)) if names[index] != names[index - 1]), default=0)
        chooser = next(filter(None, (find(above[last], path) for path in (f"{section}.name", key, "task_name"))), None)
        for layer, name in zip(above[: min(last, len(above) - 2)], names, strict=False):
            if chooser is None or None in (name, names[last]) or name == names[last]:
                continue
            note = _noter(problems, f"`{section}.name: {names[last]}` ({chooser.origin})", is_by_user(chooser.origin))
            _drop_section(layer, section, name, names[last], note)
            for weights in WEIGHTS if section == "model" else ():
                if weights in layer.value:
                    note(weights, layer.value.pop(weights))


def note_overridden(named: Sequence[Node], above: Sequence[Node], problems: Problems) -> None:
    """Note each key of a user's file, named on the command line, that an earlier training file overrides.

    Args:
        named: The task and model files.
        above: Layers above them; the last two are the command line.
    """
    files, command_line = above[:-2], above[-2:]
    for section, _, key in CHOICES:
        if not any(key in layer.value for layer in command_line):
            continue
        given = [leaf for layer in named for leaf in leaves(layer) if leaf[0].startswith(f"{section}.")]
        for path, node in given:
            winner = next((other for layer in reversed(files) if (other := find(layer, path)) is not None), None)
            if winner is None or not is_by_user(node.origin):
                continue
            if any(find(layer, path) is not None for layer in command_line):
                continue
            if winner.plain() != node.plain():
                problems.note(
                    f"`{path}: {shown(node.plain())}` ({node.origin}) becomes {shown(winner.plain())} "
                    f"({winner.origin}): a training file has precedence over a {key.partition('_')[0]} file"
                )


def _noter(problems: Problems, choice: str, is_wanted: bool) -> Callable[[str, Node], None]:
    def note(path: str, node: Node) -> None:
        value = "" if node.is_mapping else f": {shown(node.plain())}"
        if is_wanted:
            problems.note(f"`{path}{value}` ({node.origin}) is dropped: {choice} has precedence")

    return note


def _drop_section(layer: Node, section: str, before: str, now: str, note: Callable[[str, Node], None]) -> None:
    node = layer.value.get(section)
    if node is None or not node.is_mapping:
        return
    if "name" in node.value:
        note(f"{section}.name", node.value["name"])
        del layer.value[section]
        return
    unknown = _keys(section, before) - _keys(section, now)
    for key in [key for key in node.value if key in unknown]:
        note(f"{section}.{key}", node.value[key])
    kept = {key: child for key, child in node.value.items() if key not in unknown}
    layer.value[section] = Node(kept, node.origin, node.text, node.replaces)


def _keys(section: str, name: str) -> set[str]:
    """The keys of a component; none if it cannot be imported, which is reported where it is built."""
    try:
        return set(keys_of(component_module(section, name).Config))
    except ConfigError:
        return set()


def _chosen(section: str, kind: str, key: str, stack: Sequence[Node]) -> list[str | None]:
    """For each layer, the component that it and those below it choose; None if they choose none."""
    names: list[str | None] = []
    explicit: Node | None = None  # named by a layer itself
    of_task: Node | None = None  # named by the task's file
    for layer in stack:
        named, file = find(layer, f"{section}.name"), layer.value.get(key)
        if named is not None:
            explicit = named
        elif file is not None and file.value is not None:
            explicit = _component_in(section, kind, file)
        task = layer.value.get("task_name")
        if section == "model" and task is not None:
            of_task = _component_in("model", "task", task) if task.value is not None else None
        node = explicit or of_task
        names.append(node.value if node is not None and isinstance(node.value, str) else None)
    return names


def _component_in(section: str, kind: str, name: Node) -> Node | None:
    """The component that a task or model file chooses; None if the file cannot be read, which is reported elsewhere."""
    try:
        file = layers.file_layer(kind, layers.find_file(kind, str(name.text or name.value)), Problems())
    except ConfigError:
        return None
    if (named := find(file, f"{section}.name")) is not None:
        return named
    model = file.value.get("model_config") if section == "model" else None
    return _component_in("model", "model", model) if model is not None and model.value is not None else None
