"""Settings that speak of the same thing: the later word wins, and the loser leaves the tree.

What is left says what the run does, so that a printed configuration, read again, means the same run.
"""

from __future__ import annotations

from .errors import Problems
from .hyper import HyperArguments
from .schema import keys_of
from .tree import DEFAULT, Node, rank

# (key, the other key that sets the same length): the first counts when it is above zero.
LENGTHS = (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio"))


def settle(tree: Node, layers: list[Node], problems: Problems) -> None:
    """Resolves the pairs in place; two of a pair in one layer are a problem."""
    for first, second in LENGTHS:
        _one_length(tree, layers, first, second, problems)
    _evaluation(tree, layers)


def _one_length(tree: Node, layers: list[Node], first: str, second: str, problems: Problems) -> None:
    one, other = tree.value[first], tree.value[second]
    if not (_positive(one) and _positive(other)):
        return
    ranks = rank(layers, first), rank(layers, second)
    if ranks[0] == ranks[1] > 1:
        problems.add(
            f"`{first}`{one.origin.place} and `{second}`{other.origin.place} both set the same length; keep one"
        )
    loser = first if ranks[1] > ranks[0] else second
    tree.value[loser] = Node(keys_of(HyperArguments)[loser].default, DEFAULT)


def _evaluation(tree: Node, layers: list[Node]) -> None:
    """`eval_strategy`, where a file sets it, against `do_eval` and `eval_steps`."""
    strategy = tree.value.get("eval_strategy")
    if strategy is None:
        return
    ranks = {name: rank(layers, name) for name in ("eval_strategy", "do_eval", "eval_steps")}
    do_eval, steps = tree.value["do_eval"], tree.value["eval_steps"]
    if do_eval.value is False and ranks["do_eval"] >= ranks["eval_strategy"]:
        tree.value["eval_strategy"] = Node("no", do_eval.origin)
    elif strategy.value in (False, "no"):
        for name, node, asks in (("do_eval", do_eval, do_eval.value is True), ("eval_steps", steps, steps.value)):
            if asks and ranks[name] > ranks["eval_strategy"]:
                tree.value["eval_strategy"] = Node("steps", node.origin)


def _positive(node: Node) -> bool:
    return isinstance(node.value, (int, float)) and not isinstance(node.value, bool) and node.value > 0
