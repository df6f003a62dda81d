"""What `pip install .` gives: the files of a wheel, and its commands, run in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # builds a wheel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the files that git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run([*pip, "-w", str(folder), str(folder / "tree")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with Keel from the wheel, and its dependencies from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # of the path alone: no editable Keel
    return folder / "bin"


def run(command, *words, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([command, *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_contains_the_code_and_the_configuration_and_nothing_else(wheel):
    contents = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    rooms = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    entries = {path.name for path in ROOT.glob("*.py")}
    assert {"configs", "trainer"} < set(rooms) and {"train.py", "keel_console.py"} < entries
    files = {path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert contents == entries | {str(path.relative_to(ROOT)) for path in files}


def test_commands_find_configurations_outside_of_a_checkout(installed, tmp_path):
    words = ["--task_name", "sim_transfer_cube_state", "--training_config", "act_state", "--model_config", "mlp"]
    done = run(installed / "keel-train", *words, "--check", "--output_dir", str(tmp_path / "out"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(installed / "keel-train", *words, "--print_config", "json", cwd=tmp_path)
    assert str(installed.parent) in done.stdout and str(ROOT) not in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train", "eval", "predict", "prepare", "report"])
def test_every_entry_has_a_command(installed, tmp_path, name):
    if not (ROOT / f"{name}.py").exists():
        pytest.skip(f"no {name}.py")
    command = installed / f"keel-{name}"
    assert run(command, "--help", cwd=tmp_path).returncode == 0
    done = run(command, "--no_such_flag", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_completion_calls_the_command_itself(installed, tmp_path):
    done = run(installed / "keel-train", "--complete", "keel-train --task_name sim_tr", cwd=tmp_path)
    assert "sim_transfer_cube_state" in done.stdout.splitlines()
