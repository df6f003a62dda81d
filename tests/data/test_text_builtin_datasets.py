"""Data sets known by name: what they are made of, and when they are made."""

import asyncio
import email
import importlib
import json
import logging
import shutil
import types
import unittest

import pytest

from data.text import builtin_datasets, find
from data.text.builtin_datasets import prepared, settings_of
from data.text.config import READY
from data.text.preparing import PreparationSettings


def config_of(*paths):
    return types.SimpleNamespace(paths=lambda: list(paths))


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A standard library of twenty modules, with what does not belong to it."""
    root = tmp_path / "lib"
    for name in [f"m{n:02}.py" for n in range(20)] + [
        "site-packages/x.py",
        "test/t.py",
        "json/tests/u.py",
        "notes.txt",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"import {name.split('.')[0]}\n")
    monkeypatch.setattr(builtin_datasets.sysconfig, "get_path", lambda name: str(root))
    return root


def test_the_standard_library_without_packages_and_tests(small_library, tmp_path, capsys):
    run = types.SimpleNamespace(cache_dir=tmp_path / "home")
    assert prepared(config := config_of("python_stdlib"), run) is config
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "no data set python_stdlib yet: preparing it into" in lines[0]
    folder = find("python_stdlib", run.cache_dir)
    assert folder == tmp_path / "home/datasets/python_stdlib"
    record = json.loads((folder / "prepared.json").read_text())
    assert record["sources"][0]["files"] == 20 and record["settings"]["tokenizer"] == "bpe:4096"
    before = (folder / "train.bin").stat().st_mtime_ns
    prepared(config, run)
    assert (folder / "train.bin").stat().st_mtime_ns == before and not capsys.readouterr().out


def test_other_names_are_left_to_whoever_reads_them(tmp_path):
    run = types.SimpleNamespace(cache_dir=tmp_path)
    prepared(config_of("my_own", str(tmp_path)), run)
    assert not list(tmp_path.iterdir())


def test_shakespeare_is_downloaded_once_and_checked(tmp_path, shared, monkeypatch):
    (tmp_path / "served.txt").write_bytes((shared / "data/tinyshakespeare.txt").read_bytes())
    monkeypatch.setattr(builtin_datasets, "SHAKESPEARE_URL", (tmp_path / "served.txt").as_uri())
    settings = settings_of("shakespeare_char", tmp_path / "home", {})
    assert settings == PreparationSettings(str(tmp_path / "home/downloads/tinyshakespeare.txt"), "char")
    (tmp_path / "served.txt").unlink()
    assert settings_of("shakespeare_char", tmp_path / "home", {}) == settings, "not downloaded again"


def test_without_a_network_it_says_how_to_do_it(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin_datasets, "SHAKESPEARE_URL", (tmp_path / "nowhere").as_uri())
    remedy = "python prepare.py --dataset shakespeare_char --text FILE"
    with pytest.raises(ValueError, match=f"cannot download .*nowhere.*; .*{remedy}") as caught:
        settings_of("shakespeare_char", tmp_path / "home", {})
    assert "\n" not in str(caught.value)
    (tmp_path / "nowhere").write_text("<html>log in to this hotel's network</html>")
    with pytest.raises(ValueError, match=f"another checksum.*{remedy}"):
        settings_of("shakespeare_char", tmp_path / "home", {})
    assert not (tmp_path / "home").exists()


def test_what_is_given_stands_instead_of_its_own(tmp_path):
    given = {"text": "mine.txt", "val_fraction": 0.2}
    assert settings_of("shakespeare_char", tmp_path, given) == PreparationSettings("mine.txt", "char", 0.2)
    assert settings_of("python_stdlib", tmp_path, given) == PreparationSettings("mine.txt", "bpe:4096", 0.2)
    own = settings_of("python_stdlib", tmp_path, {"tokenizer": "bytes"})
    assert (own.tokenizer, own.only) == ("bytes", ".py") and "site-packages" in own.without


@pytest.mark.slow
def test_real_modules_of_the_standard_library(tmp_path, monkeypatch):
    """Real text, of a megabyte and a half, that its tokenizer shortens by more than half."""
    for package in (asyncio, email, importlib, logging, unittest):
        (folder,) = package.__path__
        shutil.copytree(folder, tmp_path / "lib" / package.__name__)
    monkeypatch.setattr(builtin_datasets.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    prepared(config_of("python_stdlib"), types.SimpleNamespace(cache_dir=tmp_path))
    meta = json.loads((tmp_path / "datasets/python_stdlib/meta.json").read_text())
    tokens, size = (sum(split[key] for split in meta["splits"].values()) for key in ("tokens", "bytes"))
    assert size > 1e6 and meta["vocab_size"] == 4096 and size / tokens > 2.5
    assert 0.02 < meta["splits"]["val"]["tokens"] / tokens < 0.3


def test_both_names_are_known():
    assert set(READY) == {"shakespeare_char", "python_stdlib"}
