"""`python_docstrings`: records from Python source, and its name as a path."""

import ast
import json
import shutil
from types import SimpleNamespace

import pytest

import data.records
from data.records import builtin_datasets

SOURCE = '''
import os

class Thing:
    """A class's docstring is not a function's."""

    @property
    def size(self):
        """Return the number of
        things that there are.

        More about it.
        """
        # counted once
        return self.count

def short():
    """Too short."""
    return 1

def nothing_but_words():
    """This one has a docstring and no body at all."""

def plain(x):
    return x

async def waits(x, *, y=1):
    r"""Wait for the given thing to happen."""
    await x
    return y
'''


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    for number in range(40):
        (root / f"package{number % 3}").mkdir(parents=True, exist_ok=True)
        (root / f"package{number % 3}/module{number}.py").write_text(SOURCE.replace("size", f"size{number}"))
    (root / "test").mkdir()
    (root / "test/test_it.py").write_text(SOURCE.replace("size", "tested"))
    (root / "broken.py").write_text("def (:\n")
    (root / "latin.py").write_bytes(b"# \xff\n")
    return root


def records(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_functions_without_their_docstrings(library):
    found = [function for function in builtin_datasets.functions(library) if function[0] == "package0/module0.py"]
    assert found == [
        (
            "package0/module0.py",
            "async def waits(x, *, y=1):\n    await x\n    return y",
            "Wait for the given thing to happen.",
        ),
        (
            "package0/module0.py",
            "def size0(self):\n    # counted once\n    return self.count",
            "Return the number of things that there are.",
        ),
    ]


def test_records(library, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        builtin_datasets.write(tmp_path / name, library)
    for name in ("train.jsonl", "val.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    train, held_out = records(tmp_path / "one", "train.jsonl"), records(tmp_path / "one", "val.jsonl")
    assert train and held_out
    # One for each `size…`, and `waits`, which every module has, once.
    questions = [each["messages"][0]["content"] for each in train + held_out]
    assert len(questions) == len(set(questions)) == 41 and not any("tested" in question for question in questions)
    assert not {each["source"] for each in train} & {each["source"] for each in held_out}
    for record in train + held_out:
        user, assistant = record["messages"]
        assert user["role"] == "user" and assistant["role"] == "assistant"
        code = user["content"].removeprefix(f"{builtin_datasets.INSTRUCTION}\n\n```python\n").removesuffix("\n```")
        assert ast.get_docstring(ast.parse(code).body[0]) is None and assistant["content"] not in code


def test_the_name_as_a_path(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builtin_datasets, "library", lambda: library)
    run = SimpleNamespace(cache_dir=tmp_path / "home", process=SimpleNamespace(model_name_or_path="x"))
    config = data.records.prepared(data.records.Config(path="python_docstrings"), run)
    folder = tmp_path / "home/datasets/python_docstrings"
    assert config.path == str(folder) and len(records(folder, "train.jsonl")) > 20
    assert capsys.readouterr().out.startswith("preparing python_docstrings in ")
    assert len(records(folder, "train.jsonl")) + len(records(folder, "val.jsonl")) == 41
    data.records.prepare("python_docstrings", folder)  # again: nothing to do
    again = data.records.Config(path="python_docstrings")  # now it is there: a name like any other
    assert data.records.prepared(again, run) is again and data.records.check(again, run) == []
    other = data.records.Config(path="elsewhere.jsonl")
    assert data.records.prepared(other, run) is other


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "python_docstrings").mkdir()
    (tmp_path / "python_docstrings/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        data.records.prepare("python_docstrings", tmp_path / "python_docstrings")
    assert (tmp_path / "python_docstrings/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_modules_of_the_installed_standard_library(tmp_path, monkeypatch):
    """As many records as are wanted, of those that there are; no more."""
    installed = builtin_datasets.library()
    for package in ("asyncio", "email", "importlib", "logging", "unittest"):
        shutil.copytree(installed / package, tmp_path / "lib" / package)
    monkeypatch.setattr(builtin_datasets, "library", lambda: tmp_path / "lib")
    monkeypatch.setattr(builtin_datasets, "MOST_RECORDS", 100)
    folder = tmp_path / "python_docstrings"
    data.records.prepare("python_docstrings", folder)
    train, held_out = (len(records(folder, f"{name}.jsonl")) for name in ("train", "val"))
    assert train + held_out == 100 and held_out > 3
