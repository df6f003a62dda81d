"""The house rules, read from the source: who imports whom, what a component exports, what a wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from documents import checked

from loader.schema.components import component_module, shipped
from loader.schema.keys import keys_of
from loader.schema.process_arguments import ProcessArguments
from loader.schema.sections import COMPONENTS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("loader", "models", "data", "trainer", "sim")
ENTRIES = ("train", "eval", "prepare")
COMPONENT_NAMES = [(section, name) for section in COMPONENTS for name in shipped(section)]


def sources(room):
    return sorted((ROOT / room).rglob("*.py"))


def imported(path):
    """Top-level names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_none_of_one_another_and_no_entry(room):
    others = {*ROOMS, *ENTRIES, "configs"} - {room}
    wrong = [(path.relative_to(ROOT), name) for path in sources(room) for name in imported(path) if name in others]
    assert sources(room) and not wrong


def test_storage_stands_on_nothing_but_python():
    """It lies under every room, and `--check` and `trainer.verify` use it without the cost of an import."""
    names = {name for path in sources("storage") for name in imported(path)}
    assert sources("storage") and names <= {*sys.stdlib_module_names, "storage"}


def test_the_import_rule_would_notice(tmp_path):
    (tmp_path / "x.py").write_text("def f():\n    from data.cache import build\n    import models.act\n")
    assert set(imported(tmp_path / "x.py")) == {"data", "models"}


def test_there_is_no_drawer():
    names = {path.stem for room in (*ROOMS, "storage") for path in sources(room)}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize(("section", "name"), COMPONENT_NAMES)
def test_component_contract(section, name):
    """Every component that ships: its keys have types and help texts, its process keys exist."""
    module = component_module(section, name)
    for key in keys_of(module.Config).values():
        assert key.help, f"{section} {name}: `{key.name}` has no help text"
    assert frozenset(keys_of(ProcessArguments)) >= module.PROCESS_KEYS
    needed = {"dataset": ("build", "check"), "model": ("build", "load", "PARTS"), "env": ("make",)}[section]
    assert all(hasattr(module, each) for each in needed)


def test_every_component_is_found():
    assert {("dataset", "demonstrations"), ("env", "aloha"), ("model", "act"), ("model", "mlp")} <= set(COMPONENT_NAMES)


def test_components_are_checked_without_heavy_imports():
    code = "import sys\n" + "".join(
        f"from loader.schema.components import component_module; component_module({section!r}, {name!r})\n"
        for section, name in COMPONENT_NAMES
    )
    code += "heavy = {'torch', 'transformers', 'h5py', 'mujoco', 'cv2'} & set(sys.modules)\nassert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs/training").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_training_file_passes_check(path, tmp_path, in_root):
    assert checked("--training_config", str(path), "--output_dir", str(tmp_path / "o")) == (0, [])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/task").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_task_passes_check(path, tmp_path, in_root):
    assert checked("--task_name", path.stem, "--output_dir", str(tmp_path / "o")) == (0, [])


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_the_configuration_and_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(tree),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {str(path.relative_to(ROOT)) for room in (*ROOMS, "storage", "configs") for path in sources(room)}
    yaml = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert held == code | yaml | {"train.py", "eval.py", "prepare.py", "configs/schema.json"}
