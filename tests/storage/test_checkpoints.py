"""Names of checkpoints, and the removal of what killed processes left."""

import os
import subprocess

import pytest

from storage import checkpoints as names


@pytest.fixture
def living():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def dead():
    process = subprocess.Popen(["true"])
    process.wait()
    return process


def test_sorted_by_step(tmp_path):
    for name in ("100", "9", "1000", "x", "1-old", "007", ""):
        (tmp_path / f"checkpoint-{name}").mkdir()
    (tmp_path / "xcheckpoint-1").mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert [path.name for path in names.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-100", "checkpoint-1000"]
    assert names.checkpoints(tmp_path / "absent") == []


def test_sweep_deletes_what_dead_processes_left(tmp_path, living, dead):
    here = names.host()
    gone = [
        f".saving-checkpoint-1.{here}.{dead.pid}",
        f".saving-checkpoint-2.elsewhere.{living.pid}",  # another machine's, whose run lost the lock
        f".saving-checkpoint-3.{here}.{os.getpid()}",  # an earlier save of this process
        f".saving-checkpoint-4.{here}.99999999999999999999",
        ".deleting-checkpoint-5",
    ]
    kept = [f".saving-checkpoint-6.{here}.{living.pid}", "checkpoint-7", ".savings", ".run.lock"]
    for name in [*gone, *kept]:
        (tmp_path / name).mkdir()
    assert sorted(names.sweep(tmp_path)) == sorted(gone)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_staging_folder_names_its_process(tmp_path):
    path = names.staging_folder(tmp_path, "checkpoint-40")
    assert path.name == f".saving-checkpoint-40.{names.host()}.{os.getpid()}"
    assert names.STAGED.fullmatch(path.name)["name"] == "checkpoint-40"


def test_recover_finishes_an_interrupted_replacement(tmp_path):
    """Without an exchange of names, a process may be killed when neither folder has the name."""
    for name in (".replaced-checkpoint-3", ".replaced-checkpoint-6", "checkpoint-6"):
        (tmp_path / name).mkdir()
    assert names.recover(tmp_path) == ["checkpoint-3"]
    assert names.sweep(tmp_path) == [".replaced-checkpoint-6"]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-3", "checkpoint-6"]
    assert names.recover(tmp_path / "absent") == []


def test_files_of_live_processes_are_not_swept(tmp_path, living):
    """eval.py may write scores into the folder of a running training."""
    for pid in (living.pid, 99999999999):
        (tmp_path / f".scores.json.{pid}.tmp").write_text("{")
    names.sweep(tmp_path)
    assert os.listdir(tmp_path) == [f".scores.json.{living.pid}.tmp"]


def test_set_aside_finds_a_free_name(tmp_path):
    for number in range(3):
        (tmp_path / "checkpoint-4").mkdir()
        (tmp_path / "checkpoint-4" / f"{number}").touch()
        names.set_aside(tmp_path / "checkpoint-4", "damaged")
    aside = ("damaged-checkpoint-4", "damaged-2-checkpoint-4", "damaged-3-checkpoint-4")
    assert [[path.name for path in (tmp_path / name).iterdir()] for name in aside] == [["0"], ["1"], ["2"]]
    assert not names.checkpoints(tmp_path)


def test_temporary_symlinks_are_swept_and_folders_are_not(tmp_path, dead):
    """A process that is killed while it replaces a symlink leaves a temporary one."""
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "precious").touch()
    links = [f".best-checkpoint.{dead.pid}.tmp", f".last-checkpoint.{dead.pid}.tmp"]
    for name, target in zip(links, ("checkpoint-4", "checkpoint-5"), strict=True):  # one of them points nowhere
        (tmp_path / name).symlink_to(target)
    (tmp_path / f".mine.{dead.pid}.tmp").mkdir()
    assert names.sweep(tmp_path) == links
    assert sorted(os.listdir(tmp_path)) == [f".mine.{dead.pid}.tmp", "checkpoint-4"]
    assert os.listdir(tmp_path / "checkpoint-4") == ["precious"]
