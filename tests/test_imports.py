"""Import rules inside the rooms: layers of subpackages, import circles, and the length of functions."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("loader", "models", "data", "trainer", "sim", "storage")
MAX_FUNCTION_LINES = 50
# Highest layer first. A subpackage may import from layers below its own, never from its own layer or above.
LAYERS = {
    "loader": ["command_line", "output", "checks", "resume", "resolve", "sources", "schema", "errors"],
    "trainer": [
        "trainer",
        "step_boundary",
        "evaluation",
        "checkpointing",
        "optimization callbacks",
        "serialization distributed",
    ],
}


def modules(root):
    """Maps the dotted name of every module under `root` to its file; a package has the name of its folder."""
    files = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(module, files):
    """Names of the modules that `module` imports, also inside functions and under TYPE_CHECKING."""
    package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(files[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name if name in files else base for name in names)


def upward_imports(root):
    """Pairs (module, imported module) that break the order of the layers; tools may import no other part of trainer."""
    files, wrong = modules(root), []
    for module in files:
        room, _, rest = module.partition(".")
        part = rest.split(".")[0]
        ranks = {name: rank for rank, names in enumerate(LAYERS.get(room, ())) for name in names.split()}
        for target in imports(module, files):
            target_room, _, target_rest = target.partition(".")
            target_part = target_rest.split(".")[0]
            if target_room != room or target_part == part:
                continue
            upward = part in ranks and target_part in ranks and ranks[part] >= ranks[target_part]
            if upward or (room == "trainer" and part == "tools"):
                wrong.append((module, target))
    return wrong


def circle(root, depth=None):
    """One circle of imports between modules (or between packages, cut to `depth` names), or None."""
    files, graph = modules(root), {}
    for module in files:
        name = ".".join(module.split(".")[:depth])
        targets = {".".join(target.split(".")[:depth]) for target in imports(module, files) if target in files}
        graph.setdefault(name, set()).update(targets - {name})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def long_functions(root):
    """Names of functions of more than `MAX_FUNCTION_LINES` lines."""
    return [
        f"{module}.{node.name}"
        for module, path in modules(root).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_subpackages_import_only_from_lower_layers():
    assert not upward_imports(ROOT)


@pytest.mark.parametrize("depth", [None, 2], ids=["files", "packages"])
def test_no_import_circle(depth):
    assert circle(ROOT, depth) is None


def test_functions_are_short():
    assert not long_functions(ROOT)


def test_planted_violations_are_found(tmp_path):
    planted = {
        "loader/schema/keys.py": "def f():\n    from loader.checks import devices\n",
        "loader/checks/devices.py": "from loader.schema import keys\n",
        "trainer/tools/verify.py": "from trainer.settings import Settings\n",
        "sim/long.py": "def long():\n" + "    pass\n" * MAX_FUNCTION_LINES,
    }
    for name, text in planted.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(upward_imports(tmp_path)) == {
        ("loader.schema.keys", "loader.checks.devices"),
        ("trainer.tools.verify", "trainer.settings"),
    }
    assert circle(tmp_path) and circle(tmp_path, 2)
    assert long_functions(tmp_path) == ["sim.long.long"]
