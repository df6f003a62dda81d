"""Architecture rules, read from the source: who may import whom, the sizes of functions and files, what a component
exports."""

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from documents import checked
from ladi_folder import write_ladi
from signal_files import walk, write_npz
from track_files import write_stack

from loader.schema.components import COMPONENTS, component_module, shipped
from loader.schema.keys import keys_of
from loader.schema.process_arguments import ProcessArguments

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("train", "eval", "predict", "prepare", "report", "estimate")
ROOMS = ("loader", "models", "data", "metrics", "trainer", "sim", "serving", "reporting", "storage")
# room -> the rooms it may import besides itself
MAY_IMPORT = {room: {"storage"} for room in ROOMS} | {"data": {"storage", "metrics"}, "storage": set()}
# Subpackages (and files) of a room, highest first: each may import those below it, none its equals or those above.
LAYERS = {
    "loader": [
        ["sweep"],
        ["command_line"],
        ["output"],
        ["checks"],
        ["resume"],
        ["resolve"],
        ["sources"],
        ["schema"],
        ["errors"],
    ],
    "trainer": [
        ["trainer"],
        ["hf_overrides"],
        ["step_boundary"],
        ["evaluation", "optimization_setup"],
        ["checkpointing"],
        ["optimization", "callbacks", "dataloading"],
        ["serialization", "distributed"],
        ["hf_patches", "module_walks", "settings", "preemption"],
    ],
}
TOOLS = ("trainer.verify", "trainer.killtest", "trainer.run_differences")
MOST_FUNCTION_LINES, MOST_FILE_LINES = 50, 400
DRAWERS = {"utils", "util", "helpers", "misc", "common"}
COMPONENT_NAMES = [(section, name) for section in COMPONENTS for name in shipped(section)]


class House:
    """The Python files of a tree, by module name, and what each imports (in functions and for type checking too)."""

    def __init__(self, root):
        paths = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
        self.files = {self._module(path.relative_to(root)): path for path in paths}
        self.trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.files.items()}
        self.imports = {module: set(self._imported(module)) - {module} for module in self.files}

    @staticmethod
    def _module(path):
        parts = path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imported(self, module):
        package = module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                full = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{full}.{alias.name}"
                    yield name if name in self.files else full

    def between_rooms(self):
        """Imports of a room that it may not import, or of an entry."""
        for module, targets in self.imports.items():
            room = module.split(".")[0]
            for top in {target.split(".")[0] for target in targets} & {*ROOMS, *ENTRIES, "configs"}:
                if top != room and top not in MAY_IMPORT[room]:
                    yield f"{module} imports {top}"

    def upward(self):
        """Imports within a room that go up, or sideways, between its layers."""
        for module, targets in self.imports.items():
            room, _, rest = module.partition(".")
            rank = {name: number for number, names in enumerate(LAYERS.get(room, ())) for name in names}
            own = rest.split(".")[0]
            for target in targets:
                other = target.partition(".")[2].split(".")[0] if target.split(".")[0] == room else ""
                if own in rank and other in rank and own != other and rank[own] >= rank[other]:
                    yield f"{module} imports {target}"

    def tools(self):
        """Imports of a tool from the rest of trainer: the tools work with nothing but storage."""
        for module, targets in self.imports.items():
            if module in TOOLS:
                yield from (f"{module} imports {t}" for t in targets if t.startswith("trainer.") and t not in TOOLS)

    def circles(self):
        """Circles of files, then of subpackages."""
        yield from _circles({module: targets & self.files.keys() for module, targets in self.imports.items()})
        packages = {}
        for module, targets in self.imports.items():
            package = ".".join(module.split(".")[:2])
            other = {".".join(target.split(".")[:2]) for target in targets if target in self.files}
            packages.setdefault(package, set()).update(other - {package})
        yield from _circles(packages)

    def long(self):
        for module, tree in self.trees.items():
            lines = self.files[module].read_text(encoding="utf-8").count("\n")
            if lines > MOST_FILE_LINES:
                yield f"{module} has {lines} lines"
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    length = node.end_lineno - node.lineno + 1
                    if length > MOST_FUNCTION_LINES:
                        yield f"{module}.{node.name} has {length} lines"


def _circles(graph):
    """Every group of nodes that reach one another (strongly connected components with more than one node)."""
    reach = {}
    for start in graph:
        seen, queue = set(), list(graph[start])
        while queue:
            node = queue.pop()
            if node not in seen:
                seen.add(node)
                queue += graph.get(node, ())
        reach[start] = seen
    groups = {frozenset([node, *(other for other in reach[node] if node in reach.get(other, ()))]) for node in graph}
    return sorted(" <-> ".join(sorted(group)) for group in groups if len(group) > 1)


@pytest.fixture(scope="module")
def house():
    return House(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["between_rooms", "upward", "tools", "circles", "long"])
def test_the_house_keeps_its_rules(house, rule):
    assert len(house.files) > 100 and list(getattr(house, rule)()) == []


def test_the_entries_are_short():
    for name in ENTRIES:
        source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        assert source.count("\n") <= MOST_FILE_LINES, name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, f"{name}.{node.name}"


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"loader/a.py": "def f():\n    import models.act\n"}, "between_rooms"),
        ({"storage/a.py": "import trainer.trainer\n"}, "between_rooms"),
        ({"models/a.py": "from train import main\n"}, "between_rooms"),
        ({"loader/schema/a.py": "from loader.checks.b import c\n"}, "upward"),
        ({"trainer/callbacks/a.py": "from trainer import trainer\n", "trainer/trainer.py": ""}, "upward"),
        ({"trainer/optimization/a.py": "from ..callbacks.b import c\n"}, "upward"),
        ({"trainer/verify.py": "from trainer.settings import b\n"}, "tools"),
        ({"data/a.py": "from data.b import c\n", "data/b.py": "if TYPE_CHECKING:\n    import data.a\n"}, "circles"),
        ({"data/x/a.py": "import data.y.b\n", "data/y/b.py": "", "data/y/c.py": "import data.x.d\n"}, "circles"),
        ({"sim/a.py": "x = 1\n" * 401}, "long"),
        ({"sim/a.py": "def f():\n" + "    x = 1\n" * 50}, "long"),
    ],
)
def test_each_rule_notices_what_it_forbids(tmp_path, files, rule):
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    if rule == "circles" and "data/x/a.py" in files:
        (tmp_path / "data/x/d.py").write_text("")
    assert list(getattr(House(tmp_path), rule)())


def test_the_layers_exist():
    """A renamed subpackage must not leave its rule without effect."""
    for room, layers in LAYERS.items():
        for name in {name for names in layers for name in names}:
            assert (ROOT / room / name).is_dir() or (ROOT / room / f"{name}.py").is_file(), f"{room}/{name}"
    assert all(len(upper) and len(lower) for layers in LAYERS.values() for upper, lower in pairwise(layers))


def test_storage_imports_only_the_standard_library(house):
    """All rooms import it, and `--check` and `trainer.verify` may not pay for an import."""
    names = {
        target.split(".")[0]
        for module in house.files
        if module.startswith("storage")
        for target in house.imports[module]
    }
    assert names <= {*sys.stdlib_module_names, "storage"}


def test_there_is_no_drawer(house):
    assert not {module.rpartition(".")[2] for module in house.files} & DRAWERS


@pytest.mark.parametrize(("section", "name"), COMPONENT_NAMES)
def test_component_contract(section, name):
    """Every component of Keel: its keys have help texts, its process keys exist, and it has the functions it needs."""
    module = component_module(section, name)
    for key in keys_of(module.Config).values():
        assert key.help, f"{section} {name}: `{key.name}` has no help text"
    assert frozenset(keys_of(ProcessArguments)) >= module.PROCESS_KEYS
    needed = {
        "dataset": ("build", "check", "Processor"),
        "model": ("build", "load", "PARTS"),
        "loss": ("build",),
        "env": ("make",),
    }
    assert all(hasattr(module, name) for name in needed[section])


def test_every_component_is_found():
    assert {("dataset", "demonstrations"), ("env", "aloha"), ("model", "act"), ("model", "mlp")} <= set(COMPONENT_NAMES)


@pytest.mark.slow
def test_components_are_checked_without_heavy_imports():
    code = "import sys\n" + "".join(
        f"from loader.schema.components import component_module; component_module({section!r}, {name!r})\n"
        for section, name in COMPONENT_NAMES
    )
    code += "heavy = {'torch', 'transformers', 'h5py', 'mujoco', 'cv2'} & set(sys.modules)\nassert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """File in configs/ -> the words that say where its data is, which no file can know."""
    images = ["--set", f"dataset.dataset_base_dir={write_ladi(tmp_path_factory.mktemp('ladi'))}"]
    signals = ["--set", f"dataset.path={write_npz(tmp_path_factory.mktemp('signals') / 'a.npz', walk(1, 600))}"]
    videos = tmp_path_factory.mktemp("videos")
    write_stack(videos, "video")
    return {
        **dict.fromkeys(("images", "ladi"), images),
        **dict.fromkeys(("signals", "ecg_gpt_cpu", "motions_cpu"), signals),
        **dict.fromkeys(("tracking", "tracking_cpu", "tracking_points_cpu"), [str(videos)]),
    }


@pytest.mark.parametrize("path", sorted((ROOT / "configs/training").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_training_file_passes_check(path, data_of, tmp_path, in_root):
    words = ["--training_config", str(path), "--output_dir", str(tmp_path / "o"), *data_of.get(path.stem, ())]
    assert checked(*words) == (0, [])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/task").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_task_passes_check(path, data_of, tmp_path, in_root):
    words = ["--task_name", path.stem, "--output_dir", str(tmp_path / "o"), *data_of.get(path.stem, ())]
    assert checked(*words) == (0, [])
