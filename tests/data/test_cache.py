"""The folder cache: complete or absent, built once, never stale."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from data import cache

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])}


def build_text(text: str):
    def build(folder):
        (folder / "content").write_text(text)
        return {"text": text}

    return build


def test_builds_once_and_reuses(tmp_path):
    folder, manifest = cache.open_or_build(tmp_path / "new", "key", build_text("first"))
    again, same = cache.open_or_build(tmp_path / "new", "key", build_text("second"))
    assert folder == again and manifest == same and manifest["text"] == "first"
    assert (folder / "content").read_text() == "first"


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupted(folder):
        (folder / "content").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.open_or_build(tmp_path, "key", interrupted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.lock"]
    assert cache.open_or_build(tmp_path, "key", build_text("whole"))[1]["text"] == "whole"


@pytest.mark.slow
def test_a_killed_build_is_neither_used_nor_kept(tmp_path):
    program = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from data import cache
        def build(folder):
            (folder / "content").write_text("half")
            os.kill(os.getpid(), 9)
        cache.open_or_build(Path(sys.argv[1]), "key", build)
    """)
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=ENVIRONMENT)
    assert killed.returncode == -9 and list(tmp_path.glob("key.building-*"))
    folder, _ = cache.open_or_build(tmp_path, "key", build_text("whole"))
    assert (folder / "content").read_text() == "whole" and not list(tmp_path.glob("key.building-*"))


@pytest.mark.slow
def test_two_processes_build_once(tmp_path):
    program = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from data import cache
        root = Path(sys.argv[1])
        def build(folder):
            (root / f"built-{os.getpid()}").touch()
            time.sleep(0.5)
            (folder / "content").write_text("x")
            return {"by": os.getpid()}
        print(cache.open_or_build(root, "key", build)[1]["by"])
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    started = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in started]
    assert answers[0] == answers[1] != "" and len(list(tmp_path.glob("built-*"))) == 1


def test_a_damaged_folder_is_built_again(tmp_path):
    folder, _ = cache.open_or_build(tmp_path, "key", build_text("long content"))
    (folder / "content").write_text("short")
    assert cache.open_or_build(tmp_path, "key", build_text("fresh"))[1]["text"] == "fresh"
    assert (folder / "content").read_text() == "fresh"


def test_a_file_that_stays_busy_with_its_time_stamp_restored_is_seen(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    before, status = cache.file_identity(file, "file"), file.stat()
    file.write_bytes(bytes(50_000) + b"x" + bytes(49_999))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = cache.file_identity(file, "file")
    assert after["modified_ns"] == before["modified_ns"] and after["size"] == before["size"]
    assert after["digest"] != before["digest"]
    os.utime(file, ns=(1, 1))
    assert cache.file_identity(file, "file") != after


def test_an_unwritable_root_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot keep prepared data in .*cache_dir"):
        cache.open_or_build(tmp_path / "file" / "below", "key", build_text("x"))


def test_memory_and_disk_are_checked_with_both_sizes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"preload_data needs 1000000.00 GB of memory but [\d.]+ GB is free"):
        cache.require_memory(10**15)
    cache.require_memory(cache.free_memory() // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="preload_data needs"):
        cache.require_memory(cache.free_memory() // 2)
    with pytest.raises(ValueError, match="needs 1000000.00 GB on disk"):
        cache.require_disk(tmp_path, 10**15, "episodes")
