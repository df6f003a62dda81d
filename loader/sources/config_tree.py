"""The tree of configuration values with their origins, and how layers are merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where a value came from: `default`, `cli`, `set`, or a line of a file."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """Return it as it is recorded: `default`, `cli`, `set`, `FILE:LINE`."""
        return self.source if self.line is None else f"{self.source}:{self.line}"

    @property
    def place(self) -> str:
        """The place for an error line: ` at FILE:LINE:COLUMN`, ` in --set`, ` on the command line`, or empty."""
        if self.line is not None:
            return f" at {self.source}:{self.line}:{self.column}"
        return {"set": " in --set", "cli": " on the command line"}.get(self.source, "")


MISSING = "???"  # OmegaConf's value of a key that another layer has to give
DEFAULT, CLI, SET = Origin("default"), Origin("cli"), Origin("set")


@dataclass
class Node:
    """One value. `value` is a scalar, a list of Nodes or a dict of Nodes.

    `text` keeps what an unquoted scalar looked like in the file: YAML reads a bare `no` as false, and a key that
    takes words (`save_strategy: no`) wants the word back.
    """

    value: Any
    origin: Origin
    text: str | None = None
    replaces: bool = False  # a named set replaces an earlier mapping instead of merging into it

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """Return the value without origins, as Python lists and dicts."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def node_of(value: Any, origin: Origin) -> Node:
    """Convert a Python value to a tree with one origin."""
    if isinstance(value, dict):
        return Node({str(key): node_of(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([node_of(child, origin) for child in value], origin)
    return Node(value, origin)


def merge(earlier: Node, later: Node) -> Node:
    """Merge mappings key by key; any other value, and a named set, replaces the earlier one as a whole."""
    if later.replaces or not (earlier.is_mapping and later.is_mapping):
        return later
    merged = dict(earlier.value)
    for key, node in later.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, later.origin, replaces=earlier.replaces)


def leaves(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield `(key.path, node)` of every value that is not a (non-empty) mapping, in the order written."""
    if node.is_mapping and (node.value or not path):
        for key, child in node.value.items():
            yield from leaves(child, f"{path}.{key}" if path else key)
    else:
        yield path, node


def name_missing(tree: Node) -> None:
    """Keep the names of missing values as they are written; an alias may stand for a key of another name."""
    for path, node in leaves(tree):
        if node.value == MISSING:
            node.text = path


def missing_line(path: str, node: Node) -> str:
    """Return the error line for a value that no layer gives."""
    name = node.text if node.text != MISSING and node.text else path
    return f"`{name}`{node.origin.place} is missing ({MISSING}); give it a value: {name}=…"


def find(node: Node, path: str) -> Node | None:
    """Return the node at a dotted path, or None."""
    for key in path.split("."):
        if not node.is_mapping or key not in node.value:
            return None
        node = node.value[key]
    return node


def layer_index(layers: list[Node], path: str) -> int:
    """Return the index of the highest layer that sets a key; 0 if none does."""
    setting = [index for index, layer in enumerate(layers) if find(layer, path) is not None]
    return setting[-1] if setting else 0


def at_path(path: str, node: Node) -> Node:
    """Return a layer that sets `node` at a dotted path and nothing else."""
    for key in reversed(path.split(".")):
        node = Node({key: node}, node.origin)
    return node
