"""What all tests share: a KEEL_HOME of their own, and the path of the shared folder beside the repository."""

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FROZEN = [0]  # number of imported modules at the last `gc.freeze`
HOMES = itertools.count()
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def no_launch_is_left():
    """No test leaves a launcher's variables behind: every later test would count as launched."""
    before = [os.environ.get(name) for name in LAUNCHER]
    yield
    assert [os.environ.get(name) for name in LAUNCHER] == before


@pytest.fixture(autouse=True)
def own_keel_home(no_launch_is_left, tmp_path_factory, monkeypatch):
    """No test reads or writes the user's prepared data. The test that writes into the folder creates it."""
    monkeypatch.setenv("KEEL_HOME", str(tmp_path_factory.getbasetemp() / "homes" / str(next(HOMES))))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


@pytest.fixture(autouse=True)
def imports_are_not_garbage():
    """Each training ends with a garbage collection, which walks all that was ever imported: half a second a time."""
    yield
    if "transformers.trainer" in sys.modules and len(sys.modules) > 1.05 * FROZEN[0]:
        gc.collect()
        gc.freeze()
        FROZEN[0] = len(sys.modules)


@pytest.fixture
def in_root(monkeypatch):
    """The working folder is the repository's root, as in the documents' examples."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture
def shared():
    """The folder with specifications and data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("KEEL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}")
    return folder
