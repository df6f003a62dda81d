"""The tree of configuration values with their origins: how layers are merged, and how YAML is read into it.

YAML is read with safe tags only, without duplicate keys, and with `${env:…}` expanded.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from loader.errors import ConfigError


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


# ---- YAML ----

MOST_BYTES = 4 * 2**20  # of a file
# More than any configuration needs: the limit for aliases that multiply one another ("billion laughs").
MOST_NODES = 50_000
MOST_LEVELS = 50  # of nested mappings and lists

# A package's name has no dots here: to look up `a.b` Python imports `a`.
EXPANDED = re.compile(
    r"\$?\$\{(?:env:(?P<variable>[A-Za-z_]\w*)(?::(?P<default>[^}]*))?|package:(?P<package>[A-Za-z_]\w*))\}", re.ASCII
)
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")
EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
PREFIX = "tag:yaml.org,2002:"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RESOLVER = yaml.resolver.Resolver()


def read_yaml(path: str | os.PathLike) -> Node:
    """Read the mapping in a YAML file as a tree with positions.

    Raises:
        ConfigError: the file is missing or unreadable, is not a mapping, repeats a key, holds a tag that is not
            plain YAML, or names an unset environment variable or a package that is not installed. One line, with the
            position where there is one.
    """
    shown = display_path(path)
    try:
        text = _content(path, shown).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {shown} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration file {shown} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except OSError as error:
        raise ConfigError(f"configuration file {shown} cannot be read: {error.strerror}") from None
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: str) -> Node:
    """Parse the text of a YAML file; error lines call the file `shown`. See `read_yaml`."""
    root = _compose(text, shown)
    if root is None:
        return Node({}, Origin(shown, 1, 1))
    tree = _Builder(shown).build(root)
    if tree.value is None:
        return Node({}, tree.origin)  # an empty document
    if not tree.is_mapping:
        kind = "list" if isinstance(tree.value, list) else "single value"
        raise ConfigError(f"{shown} is a {kind}; a configuration is a mapping of `key: value` lines")
    return tree


def _content(path: str | os.PathLike, shown: str) -> bytes:
    """Read a file, or a pipe that a shell has opened (`/dev/stdin`, `<(…)`)."""
    if os.path.isdir(path):
        raise ConfigError(f"configuration file {shown} is a folder; name a YAML file in it")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"configuration file {shown} is larger than {MOST_BYTES // 2**20} MB; name a YAML file of settings"
        )
    return content


def read_scalar(text: str, origin: Origin) -> Node:
    """Parse a value as YAML does (`1e-4`, `[a, b]`, `null`), for `--set key.path=value`."""
    if text.strip() in ("|", ">"):  # to YAML the beginning of a block of text, which cannot follow here
        return Node(text.strip(), origin, text.strip())
    root = _compose(text, origin.source)
    if root is None:
        return Node(None, origin, text="")
    return _Builder(origin.source, fixed_origin=origin).build(root)


def display_path(path: str | os.PathLike) -> str:
    """Format a path for messages: relative to the working folder if it lies below."""
    path = os.path.expanduser(os.fspath(path))
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        _refuse_depth(text, source)
        return yaml.compose(text, Loader=Loader)
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        where = "the value" if source == SET.source else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        hint = "; YAML is indented with spaces, this line has a tab" if "\t" in line else ""
        raise ConfigError(f"{where} is not valid YAML: {problem}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {type(error).__name__}: {error}") from None


def _refuse_depth(text: str, source: str) -> None:
    """Limit the nesting: libyaml's composer recurses for each level and would crash, its events do not."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_LEVELS:
                mark = event.start_mark
                where = "the value" if source == SET.source else f"{source}:{mark.line + 1}:{mark.column + 1}"
                raise ConfigError(f"{where} is nested too deeply: more than {MOST_LEVELS} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Converts PyYAML's composed nodes to Nodes; errors name line and column."""

    def __init__(self, source: str, fixed_origin: Origin | None = None):
        self.source, self.fixed_origin = source, fixed_origin
        self.count, self.open_nodes = 0, set()

    def build(self, node: yaml.Node, origin: Origin | None = None) -> Node:
        origin = origin or self.origin(node)
        self.count += 1
        if self.count > MOST_NODES:
            raise ConfigError(f"{self.source} expands to more than {MOST_NODES:,} values; is an alias repeated?")
        if id(node) in self.open_nodes:
            raise ConfigError(f"an alias{origin.place} contains itself; a configuration is a tree")
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self.mapping(node), origin)
            if isinstance(node, yaml.SequenceNode):
                self.only_plain_tag(node, "seq")
                return Node([self.build(child) for child in node.value], origin)
            return self.scalar(node, origin)
        except RecursionError:
            raise ConfigError(f"{self.source} is nested too deeply") from None
        finally:
            self.open_nodes.discard(id(node))

    def mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        self.only_plain_tag(node, "map")
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            origin = self.origin(key_node)
            if key_node.tag == PREFIX + "merge":  # `<<: *anchor`: the mapping's own keys win over it
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise ConfigError(f"`<<`{origin.place} takes a mapping")
                    merged = {**self.build(source).value, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                raise ConfigError(f"a key{origin.place} is not text")
            self.only_plain_tag(key_node, "str", "int", "float", "bool", "null", "timestamp", "value")
            key = key_node.value
            if unreadable := unusable(key):
                raise ConfigError(f"a key{origin.place} {unreadable}")
            if key in own:
                raise ConfigError(
                    f"key `{key}`{origin.place} is repeated; it was first set at line {own[key].origin.line}"
                )
            own[key] = self.build(value_node, origin)
        return {**merged, **own}

    def scalar(self, node: yaml.ScalarNode, origin: Origin) -> Node:
        self.only_plain_tag(node, "str", "int", "float", "bool", "null", "timestamp", "value", "merge")
        bare = not node.style  # None or, from the C parser, an empty string
        meant = _tag(node.value) if bare else PREFIX + "str"
        if node.tag not in (meant, PREFIX + "str"):
            raise ConfigError(f"tag `{node.tag.replace(PREFIX, '!!')}`{self.origin(node).place} does not fit its value")
        text = self.expand(node.value, origin)
        if unreadable := unusable(text):
            raise ConfigError(f"a value{origin.place} {unreadable}; leave that out")
        if not bare:
            return Node(text, origin)
        tag = node.tag
        if text != node.value:
            tag = _tag(text)
        return Node(_bare_value(text, tag.removeprefix(PREFIX)), origin, text=text)

    def expand(self, text: str, origin: Origin) -> str:
        """Expand `${env:NAME}`, `${env:NAME:default}`, and `${package:NAME}`: the folder of an installed package.

        An unset name without a default is an error.
        """

        def replace(match: re.Match) -> str:
            if match[0].startswith("$$"):
                return match[0][1:]  # `$${env:NAME}` is how the text `${env:NAME}` itself is written
            name, default = match["variable"], match["default"]
            if match["package"]:
                return _package_folder(match["package"], origin)
            if name in os.environ:
                return os.environ[name]
            if default is None:
                raise ConfigError(
                    f"environment variable `{name}`{origin.place} is not set; set it, or give a default: "
                    f"${{env:{name}:value}}"
                )
            return default

        return EXPANDED.sub(replace, text)

    def only_plain_tag(self, node: yaml.Node, *names: str) -> None:
        if node.tag not in {PREFIX + name for name in names}:
            raise ConfigError(
                f"tag `{node.tag.replace(PREFIX, '!!')}`{self.origin(node).place} is not allowed; "
                "a configuration holds plain values only"
            )

    def origin(self, node: yaml.Node) -> Origin:
        if self.fixed_origin:
            return self.fixed_origin
        return Origin(self.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _package_folder(name: str, origin: Origin) -> str:
    """Return the folder of an installed package without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    if spec is None:
        raise ConfigError(f"package `{name}`{origin.place} is not installed: pip install {name.replace('_', '-')}")
    if not spec.submodule_search_locations:
        raise ConfigError(f"`{name}`{origin.place} is a module without a folder of its own; name a package")
    return list(spec.submodule_search_locations)[0]


def unusable(text: str) -> str | None:
    """Return why a text cannot be a value (NUL, not UTF-8), else None."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return None


def _tag(text: str) -> str:
    """Return the tag that YAML 1.1 gives an unquoted text."""
    return RESOLVER.resolve(yaml.ScalarNode, text, (True, False))


def _bare_value(text: str, tag: str) -> Any:
    """Return an unquoted scalar's value. Unlike in YAML 1.1, `1e-4` is a number; `010`, `12:30` and dates are text."""
    if EXPONENT.fullmatch(text):
        return float(text)
    if tag == "int":
        return int(text.replace("_", ""), 0) if DECIMAL.fullmatch(text) and len(text) < 1000 else text
    if tag == "float":
        if ":" in text:
            return text
        return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    if tag == "bool":
        return text.lower() in ("yes", "true", "on")
    return None if tag == "null" else text
