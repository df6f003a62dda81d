"""Mutually exclusive settings (max_steps / num_train_epochs …): the later layer wins, the other key is removed.

The remaining keys describe the run, so that a printed configuration, read again, is the same run.
"""

from __future__ import annotations

from loader.errors import Problems
from loader.resolve.global_batch_size import settle_global_batch
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.keys import keys_of, scalar_keys
from loader.schema.process_arguments import ProcessArguments
from loader.sources.config_tree import DEFAULT, Node, find, layer_index

OWN_RATE = 1e-3  # of an optimizer whose `lr` is null; Adafactor then takes its relative steps instead
USERS_FIRST = 1  # the layers up to this one are built-in and default.yaml
PLATEAUS = ("reduce_lr_on_plateau", "greedy", "ReduceLROnPlateau")
# Schedules that neither end anywhere nor fall towards anything.
WITHOUT_HORIZON = ("constant", "constant_with_warmup", *PLATEAUS)
WARM_UPS = ("warmup_steps", "warmup_ratio", "warmup_epochs")


def resolve_conflicts(tree: Node, layers: list[Node], problems: Problems, is_saved: bool = False) -> None:
    """Resolve conflicts in place; two exclusive settings in one layer are a problem.

    Args:
        is_saved: The settings of an earlier run, which may have had another number of processes.
    """
    _one_of(tree, layers, ("max_steps", "num_train_epochs"), problems)
    _one_of(tree, layers, WARM_UPS, problems)
    _evaluation(tree, layers, problems)
    _saving(tree, layers)
    _own_rate(tree, layers)
    _logger(tree, layers, problems)
    _horizon(tree, layers)
    _floor(tree, layers)
    _without_effect(tree, layers, problems)
    if not is_saved:
        settle_global_batch(tree, layers, problems)


def _one_of(tree: Node, layers: list[Node], names: tuple[str, ...], problems: Problems) -> None:
    """Of several keys that set one length, keep that of the latest layer, and of equals the first named.

    Zero in a later layer removes the length, and so does -1 epochs, which is a run without end.
    """
    ranks = {name: layer_index(layers, name) for name in names}
    top = max(ranks.values())
    latest = [name for name in names if ranks[name] == top > USERS_FIRST]
    given = [name for name in names if _number(tree.value[name]) > 0]
    if latest and not set(latest) & set(given) and latest != ["max_steps"]:
        for name in set(given) - set(latest):
            if _number(tree.value[name]) > 0:
                tree.value[name] = Node(_default(name), DEFAULT)
        return
    if len(given) < 2:
        return
    winner = max(given, key=lambda name: (ranks[name], -names.index(name)))
    rivals = [name for name in given if name != winner and ranks[name] == ranks[winner] > USERS_FIRST]
    if rivals:
        places = [f"`{name}`{tree.value[name].origin.place}" for name in (winner, *rivals)]
        problems.add(f"{' and '.join(places)} both set the same length; keep one")
    for name in given:
        if name != winner:
            tree.value[name] = Node(_default(name), DEFAULT)


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
    own = find(tree, "optimizer.lr")
    if own is None or own.value is not None:
        return
    section = tree.value["optimizer"].value
    adafactor = tree.value["optim"].value == "adafactor"
    # In a named preset, `lr: null` was not chosen by the user: any learning rate that was set has precedence.
    least = USERS_FIRST if tree.value["optimizer"].replaces else layer_index(layers, "optimizer.lr")
    if layer_index(layers, "learning_rate") > least:
        del section["lr"]
    elif adafactor:
        section.setdefault("relative_step", Node(True, own.origin))
        section.setdefault("scale_parameter", Node(True, own.origin))
        if layer_index(layers, "lr_scheduler_type") <= USERS_FIRST:  # the relative steps are its schedule
            tree.value["lr_scheduler_type"] = Node("constant", own.origin)
    else:
        del section["lr"]
        tree.value["learning_rate"] = Node(OWN_RATE, own.origin)


def _logger(tree: Node, layers: list[Node], problems: Problems) -> None:
    """`logging: {logger_type, name}` against `report_to` and `run_name`, which have the same meaning."""
    section = tree.value.get("logging")
    if section is not None and section.value is None:  # `logging: null` is no logger
        section = tree.value["logging"] = Node({"logger_type": Node(None, section.origin)}, section.origin)
    kind, name = find(tree, "logging.logger_type"), find(tree, "logging.name")
    ranks = layer_index(layers, "report_to"), max(layer_index(layers, "logging.logger_type"), _null_rank(layers))
    if kind is not None:
        backends = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", None: "none", "CSVLogger": "none"}
        known = isinstance(kind.value, str | None)  # other values are refused when the section is checked
        meant, report_to = backends.get(kind.value) if known else None, tree.value["report_to"]
        agree = _reports(report_to.plain()) == _reports(meant)
        if ranks[0] == ranks[1] > USERS_FIRST and not agree:
            problems.add(
                f"`logging.logger_type`{kind.origin.place} and `report_to`{report_to.origin.place} name two loggers; "
                "keep one"
            )
        elif ranks[0] > ranks[1] and not agree:
            del section.value["logger_type"]
        elif meant is not None and not agree:
            tree.value["report_to"] = Node([Node(meant, kind.origin)], kind.origin)
    reports = _reports(tree.value["report_to"].plain())
    later = layer_index(layers, "run_name") > layer_index(layers, "logging.name")
    if name is not None and name.value is not None and reports and not later:
        tree.value["run_name"] = Node(name.value, name.origin, name.text)


def _null_rank(layers: list[Node]) -> int:
    """The highest layer that sets `logging: null`."""
    found = [i for i, layer in enumerate(layers) if "logging" in layer.value and layer.value["logging"].value is None]
    return found[-1] if found else 0


def _without_effect(tree: Node, layers: list[Node], problems: Problems) -> None:
    """A key that needs another: remove it if a later layer has switched that off; otherwise it is a problem."""
    for key, declared in scalar_keys().items():
        switch, wanted = declared.needs, declared.needs_value
        node = tree.value.get(key) if switch is not None and key not in keys_of(ProcessArguments) else None
        if node is None or node.value in (None, False) or node.plain() in ({}, []):
            continue
        other = tree.value.get(switch)
        value = other.plain() if other is not None else None
        if switch == "report_to":
            reports = _reports(value)
            is_on = bool(reports) if wanted is None else bool({wanted, "all"} & set(reports))
        else:
            is_on = bool(value)
        if is_on:
            continue
        decided = layer_index(layers, switch)
        if switch == "report_to":
            decided = max(decided, layer_index(layers, "logging.logger_type"), _null_rank(layers))
        if decided > layer_index(layers, key):
            del tree.value[key]
        else:
            needs = f"`{switch}`" if wanted is None else f"`{switch}: {wanted}`"
            problems.add(f"`{key}`{node.origin.place} has no effect without {needs}; set that, or leave it out")


def _reports(value: object) -> list[str]:
    """The reporting backends in use."""
    words = value if isinstance(value, list) else [value]
    return [word for word in words if isinstance(word, str) and word != "none"]


def _horizon(tree: Node, layers: list[Node]) -> None:
    """A later layer's schedule that does not decay removes the end and the floor of an earlier one."""
    name = tree.value["lr_scheduler_type"].value
    for key in ("lr_decay_iters", "min_lr"):
        floor = key == "min_lr" and name in PLATEAUS
        if (
            name in WITHOUT_HORIZON
            and not floor
            and layer_index(layers, "lr_scheduler_type") > layer_index(layers, key)
        ):
            tree.value[key] = Node(None, DEFAULT)


def _floor(tree: Node, layers: list[Node]) -> None:
    """A later layer's learning rate below an earlier layer's floor removes the floor."""
    rate, floor = tree.value["learning_rate"], tree.value["min_lr"]
    if _number(floor) > _number(rate) and layer_index(layers, "learning_rate") > layer_index(layers, "min_lr"):
        tree.value["min_lr"] = Node(None, DEFAULT)


def _default(name: str) -> object:
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    return keys[name].default


def _number(node: Node) -> float:
    """The node's value as a number; 0 for anything that the type check will refuse."""
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float, str)):
        return 0
    try:
        return float(node.value)
    except (ValueError, OverflowError):
        return 0
