"""torch and transformers of another age are refused before anything imports them, by every entry."""

import re
from importlib import metadata

import pytest
from audited import watching
from documents import checked
from fresh_interpreter import ROOT, python

from loader.errors import ConfigError
from loader.schema import installed as versions


@pytest.fixture
def installed(monkeypatch):
    """Pretends that other versions are installed."""
    real = metadata.version

    def pretend(**found):
        def version(package):
            if package not in found:
                return real(package)
            if found[package] is None:
                raise metadata.PackageNotFoundError(package)
            return found[package]

        monkeypatch.setattr(metadata, "version", version)
        versions.installed_version.cache_clear()

    yield pretend
    versions.installed_version.cache_clear()


def problems():
    try:
        versions.check_versions()
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "torch", ["2.10.0", "2.10.0a0+git1234", "2.10", "2.13.0+cpu", "2.100.1", "3.0", "1!2.11", "main"]
)
@pytest.mark.parametrize("transformers", ["5.17.0", "5.17.0.dev0", "5.23.1", "5.999"])
def test_what_will_do(installed, torch, transformers):
    installed(torch=torch, transformers=transformers)
    assert problems() == []


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cu128", "2.1.0", "1.13.1", "0.4"])
def test_an_older_torch(installed, version):
    installed(torch=version)
    assert problems() == [f"torch {version} is not supported; Keel needs >=2.10: pip install 'torch>=2.10'"]


@pytest.mark.parametrize("version", ["5.16.9", "4.57.1", "6.0.0", "6.0.0rc1"])
def test_another_transformers(installed, version):
    installed(transformers=version)
    (line,) = problems()
    assert line.startswith(f"transformers {version} ") and line.endswith("pip install 'transformers>=5.17,<6'")


def test_each_is_said(installed):
    installed(torch="2.0", transformers=None)
    assert [line.split()[0] for line in problems()] == ["torch", "transformers"]
    assert "is not installed" in problems()[1]


def test_the_numbers_are_those_of_the_installation():
    text = (ROOT / "setup.cfg").read_text()
    for package, (oldest, too_new) in versions.SUPPORTED.items():
        wanted = f">={oldest}" + (f",<{too_new}" if too_new else "")
        assert re.findall(rf"^    {package}(>=.*)$", text, re.MULTILINE) == [wanted]


def test_check_says_so_and_nothing_else(installed, in_root):
    installed(torch="2.9.1")
    code, lines = checked("--no_such_key", "1")
    assert code == 2 and "unknown flag" in lines[0]  # what was typed comes first
    code, lines = checked()
    assert code == 2 and lines == ["error: torch 2.9.1 is not supported; Keel needs >=2.10: pip install 'torch>=2.10'"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("train", ["--output_dir", "OUT"]),
        ("train", ["--print_config"]),
        ("eval", ["--checkpoint", "OUT"]),
        ("prepare", ["--task_name", "sim_transfer_cube_state"]),
        ("prepare", ["--dataset", "x", "--text", "FILE", "--tokenizer", "char"]),
    ],
)
def test_every_entry_refuses_before_it_imports_or_writes(tmp_path, entry, words):
    said = python(
        f"""
import contextlib, io, os, sys
sys.path.insert(0, "tests")
from importlib import metadata
from audited import watching
metadata.version = lambda package: "2.9.1" if package == "torch" else "5.20.0"
import {entry}
from loader.command_line.entry import command_line
errors = io.StringIO()
with watching() as changes, contextlib.redirect_stderr(errors):
    try:
        command_line({entry}.main, {words!r})
    except SystemExit as left:
        print(left.code)
print(changes, *({{"torch", "transformers"}} & set(sys.modules)))
print(errors.getvalue(), end="")
""",
        KEEL_HOME=str(tmp_path / "home"),
    ).splitlines()
    assert said == ["2", "[]", "error: torch 2.9.1 is not supported; Keel needs >=2.10: pip install 'torch>=2.10'"]


@pytest.mark.parametrize("entry", ["train", "eval", "prepare"])
def test_help_is_there_whatever_is_installed(installed, entry, capsys, in_root):
    import importlib

    installed(torch="1.0", transformers="4.0")
    with watching() as changes, pytest.raises(SystemExit) as left:
        importlib.import_module(entry).main(["--help"])
    assert not left.value.code and "--" in capsys.readouterr().out and changes == []
