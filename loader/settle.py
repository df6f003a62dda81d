"""Settings that speak of the same thing: the later word wins, and the loser leaves the tree.

What is left says what the run does, so that a printed configuration, read again, means the same run.
"""

from __future__ import annotations

from .errors import Problems
from .hyper import HyperArguments
from .process import ProcessArguments
from .schema import keys_of
from .tree import DEFAULT, Node, find, rank

OWN_RATE = 1e-3  # of an optimizer whose `lr` is null; Adafactor then takes its relative steps instead
USERS_FIRST = 1  # the layers up to this one are built-in and default.yaml
WARM_UPS = ("warmup_steps", "warmup_ratio", "warmup_epochs")

# Keys that only act through another: key -> (that other key, what must be in it; None: anything but nothing).
ACTS_THROUGH = {
    **{
        f"hub_{each}": ("push_to_hub", True)
        for each in ("model_id", "strategy", "private_repo", "always_push", "revision")
    },
    "greater_is_better": ("metric_for_best_model", None),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", True),
    "activation_checkpointing_kwargs": ("activation_checkpointing", True),
    "fsdp_config": ("fsdp", None),
    "run_name": ("report_to", None),
    "project": ("report_to", "trackio"),
    "trackio_space_id": ("report_to", "trackio"),
    "trackio_bucket_id": ("report_to", "trackio"),
    "trackio_static_space_id": ("report_to", "trackio"),
}


def settle(tree: Node, layers: list[Node], problems: Problems) -> None:
    """Resolves the pairs in place; two of a pair in one layer are a problem."""
    _one_of(tree, layers, ("max_steps", "num_train_epochs"), problems)
    _one_of(tree, layers, WARM_UPS, problems)
    _evaluation(tree, layers, problems)
    _saving(tree, layers)
    _own_rate(tree, layers)
    _logger(tree, layers)
    _without_effect(tree, layers, problems)


def _one_of(tree: Node, layers: list[Node], names: tuple[str, ...], problems: Problems) -> None:
    """Of several keys that set one length, the one that the latest layer sets above zero; of equals, the first."""
    said = [name for name in names if _positive(tree.value[name])]
    if len(said) < 2:
        return
    ranks = {name: rank(layers, name) for name in said}
    winner = max(said, key=lambda name: (ranks[name], -names.index(name)))
    rivals = [name for name in said if name != winner and ranks[name] == ranks[winner] > 1]
    if rivals:
        places = [f"`{name}`{tree.value[name].origin.place}" for name in (winner, *rivals)]
        problems.add(f"{' and '.join(places)} both set the same length; keep one")
    for name in said:
        if name != winner:
            tree.value[name] = Node(_default(name), DEFAULT)


def _evaluation(tree: Node, layers: list[Node], problems: Problems) -> None:
    """`eval_strategy`, where a file sets it, `check_val_every_n_epoch`, `do_eval` and `eval_steps`: who came last."""
    every = tree.value["check_val_every_n_epoch"]
    ranks = {name: rank(layers, name) for name in ("eval_strategy", "do_eval", "eval_steps", "check_val_every_n_epoch")}
    if every.value is not None:
        rivals = [name for name in ("eval_steps", "eval_strategy") if _said(tree, name)]
        for name in rivals:
            node = tree.value[name]
            if name == "eval_strategy" and node.value == "epoch":
                continue
            if ranks[name] == ranks["check_val_every_n_epoch"]:
                problems.add(
                    f"`check_val_every_n_epoch`{every.origin.place} and `{name}`{node.origin.place} both say when to "
                    "evaluate; keep one"
                )
            elif ranks[name] > ranks["check_val_every_n_epoch"]:
                tree.value["check_val_every_n_epoch"] = Node(None, DEFAULT)
                every = tree.value["check_val_every_n_epoch"]
            else:
                tree.value.pop("eval_strategy", None)
                tree.value["eval_steps"] = Node(None, DEFAULT)
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


def _saving(tree: Node, layers: list[Node]) -> None:
    """`checkpointing` decides alone when to save, unless the user also sets save_strategy or save_steps."""
    section = tree.value.get("checkpointing")
    if section is None or section.value is None:
        return
    if max(rank(layers, "save_strategy"), rank(layers, "save_steps")) <= USERS_FIRST:
        tree.value["save_strategy"] = Node("no", section.origin)


def _own_rate(tree: Node, layers: list[Node]) -> None:
    """`optimizer: {lr: null}` against `learning_rate`: the later one counts."""
    own = find(tree, "optimizer.lr")
    if own is None or own.value is not None:
        return
    section = tree.value["optimizer"].value
    adafactor = str(tree.value["optim"].value).lower() == "adafactor"
    if rank(layers, "learning_rate") > rank(layers, "optimizer.lr"):
        del section["lr"]
    elif adafactor:
        section.setdefault("relative_step", Node(True, own.origin))
        section.setdefault("scale_parameter", Node(True, own.origin))
    else:
        del section["lr"]
        tree.value["learning_rate"] = Node(OWN_RATE, own.origin)


def _logger(tree: Node, layers: list[Node]) -> None:
    """`logging: {logger_type, name}` against `report_to` and `run_name`: the section says the same in its own words."""
    kind, name = find(tree, "logging.logger_type"), find(tree, "logging.name")
    if kind is not None and rank(layers, "logging.logger_type") >= rank(layers, "report_to"):
        backends = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
        if kind.value in (None, "CSVLogger", *backends):
            tree.value["report_to"] = Node([Node(backends.get(kind.value, "none"), kind.origin)], kind.origin)
    reports = _reports(tree.value["report_to"].plain())
    if name is not None and name.value is not None and reports:
        tree.value["run_name"] = Node(name.value, name.origin, name.text)


def _without_effect(tree: Node, layers: list[Node], problems: Problems) -> None:
    """A key that acts through another: where a later layer switched that off the key goes, else it is a problem."""
    for key, (switch, wanted) in ACTS_THROUGH.items():
        node = tree.value.get(key)
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
        if rank(layers, switch) > rank(layers, key):
            del tree.value[key]
        else:
            needs = f"`{switch}`" if wanted in (None, True) else f"`{switch}: {wanted}`"
            problems.add(f"`{key}`{node.origin.place} would do nothing without {needs}; set that, or leave it out")


def _reports(value: object) -> list[str]:
    """The reporting backends in use."""
    words = value if isinstance(value, list) else [value]
    return [each for each in words if isinstance(each, str) and each != "none"]


def _said(tree: Node, name: str) -> bool:
    node = tree.value.get(name)
    return node is not None and node.value not in (None, False, "no")


def _default(name: str) -> object:
    keys = {**keys_of(HyperArguments), **keys_of(ProcessArguments)}
    return keys[name].default


def _positive(node: Node) -> bool:
    return isinstance(node.value, (int, float)) and not isinstance(node.value, bool) and node.value > 0
