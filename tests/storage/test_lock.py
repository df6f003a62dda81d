"""One run at a time in a folder. Other machines are simulated by RunLock objects with another `machine`."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storage import lock
from storage.lock import FolderInUse, RunLock, machine_identity

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = {**machine_identity(), "job": "", "restarts": ""}
THERE = {**HERE, "host": "other", "boot": "b", "pids": "p"}
QUICK = {"beat": 0.02, "watch": 0.4}  # for holders that are dead
PATIENT = {"beat": 0.02, "watch": 60}  # for those that live: the first beat ends the wait
HOLDER = """
import sys, time
from pathlib import Path
from storage.lock import FolderInUse, RunLock
lock = RunLock(Path(sys.argv[1]), machine=eval(sys.argv[2]), beat=0.02, watch=0.4)
sys.stdin.read()
try:
    lock.take()
    print("held", flush=True)
    time.sleep(60)
except FolderInUse:
    print("refused")
"""


@pytest.fixture
def holder(tmp_path):
    """`holder(machine)`: a process that holds the folder as if on that machine; it starts when its input ends."""
    started = []

    def start(machine=HERE, wait=True):
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "out"), repr(machine)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, cwd=ROOT, **pipes)
        started.append(process)
        if wait:
            process.stdin.close()
            assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def held_by(tmp_path):
    return json.loads((tmp_path / "out" / lock.NAME).read_text())


def written(tmp_path, **facts):
    """Write a lock file as another process leaves it."""
    (tmp_path / "out").mkdir(exist_ok=True)
    content = {**HERE, "pid": os.getppid(), "started": lock.process_start(os.getppid()), "token": "t"} | facts
    (tmp_path / "out" / lock.NAME).write_text(json.dumps(content))


def mine(tmp_path, machine=HERE, **more):
    return RunLock(tmp_path / "out", machine=machine, **{**QUICK, **more})


def refused(run_lock):
    with pytest.raises(FolderInUse) as error:
        run_lock.check()
    with pytest.raises(FolderInUse) as again:
        run_lock.take()
    assert str(error.value) == str(again.value) and "\n" not in str(error.value)
    return str(error.value)


def taken(tmp_path, run_lock):
    """Check, take and release the lock."""
    run_lock.check()
    run_lock.take()
    assert held_by(tmp_path)["token"] == run_lock.token
    run_lock.release()
    assert list((tmp_path / "out").iterdir()) == []


# ---- this machine ----


@pytest.mark.slow
def test_a_second_live_process_is_refused(tmp_path, holder):
    process = holder()
    text = refused(mine(tmp_path))
    assert all(key in text for key in (str(tmp_path / "out"), f"{process.pid} on {HERE['host']}", "--output_dir"))
    assert process.poll() is None and held_by(tmp_path)["pid"] == process.pid


@pytest.mark.slow
@pytest.mark.parametrize("is_zombie", [False, True])
def test_a_killed_holders_lock_is_taken_over_at_once(tmp_path, holder, is_zombie):
    process = holder()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (os.WNOWAIT if is_zombie else 0))
    taken(tmp_path, mine(tmp_path, watch=1e6))


def test_a_reused_pid_is_not_the_holder(tmp_path):
    written(tmp_path)
    refused(mine(tmp_path))
    written(tmp_path, started="1")
    taken(tmp_path, mine(tmp_path, watch=1e6))


def test_without_a_start_time_the_pid_is_the_holder(tmp_path, monkeypatch):
    written(tmp_path, started="1")
    monkeypatch.setattr(lock, "process_start", lambda pid: "")
    refused(mine(tmp_path))


def test_a_process_of_another_user_is_alive():
    assert lock.is_alive(1)
    assert not lock.is_alive(2**22 + 1) and not lock.is_alive(2**80)


def watching(run_lock):
    """A lock that raises instead of watching."""

    def watch(content):
        raise InterruptedError

    run_lock._watch = watch
    return run_lock


def test_a_pid_of_another_container_is_not_checked(tmp_path):
    written(tmp_path, pids="pid:[1]", pid=2**22 + 1)
    with pytest.raises(InterruptedError):
        watching(mine(tmp_path)).take()


def test_a_process_may_take_its_folder_again(tmp_path):
    first, second = mine(tmp_path, watch=1e6), mine(tmp_path, watch=1e6)
    first.take()
    token = first.token
    first.take()
    assert first.token == token
    second.take()
    assert held_by(tmp_path)["token"] == second.token != token
    wait_until(lambda: first.lost)
    first.release()
    assert held_by(tmp_path)["token"] == second.token  # a lost lock is not released
    second.release()


def test_context_manager(tmp_path):
    with mine(tmp_path) as run_lock:
        assert held_by(tmp_path)["token"] == run_lock.token
    assert not (tmp_path / "out" / lock.NAME).exists()
    run_lock.release()  # once more does no harm


@pytest.mark.slow
def test_forked_children_do_not_hold_release_or_beat(tmp_path):
    run_lock = mine(tmp_path, beat=1e6)
    run_lock.take()
    before = held_by(tmp_path)
    child = os.fork()
    if not child:
        run_lock.release()
        try:
            run_lock.take()
        except FolderInUse:
            os._exit(7 if threading.active_count() == 1 else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert held_by(tmp_path) == before
    run_lock.release()


@pytest.mark.slow
def test_one_of_eight_processes_wins(tmp_path, holder):
    """All start at once, with the lock of a dead process in the folder."""
    written(tmp_path, started="1")
    rivals = [holder(wait=False) for _ in range(8)]
    for rival in rivals:
        rival.stdin.close()
    answers = [rival.stdout.readline() for rival in rivals]
    assert sorted(answers) == ["held\n"] + ["refused\n"] * 7
    assert held_by(tmp_path)["pid"] == rivals[answers.index("held\n")].pid


# ---- other machines ----


def wait_until(holds):
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")


@pytest.mark.slow
def test_a_live_holder_on_another_machine_keeps_its_folder(tmp_path, holder, capsys):
    """Its process does not exist here, but its file changes."""
    process = holder(THERE)
    text = refused(mine(tmp_path, **PATIENT))
    assert f"process {process.pid} on other" in text
    assert "waiting 60 s" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dead_holder_on_another_machine_is_taken_over(tmp_path, holder, capsys):
    process = holder(THERE)
    process.kill()
    process.wait()
    run_lock = mine(tmp_path)
    run_lock.check()
    assert held_by(tmp_path)["host"] == "other"
    assert len(capsys.readouterr().err.splitlines()) == 1
    run_lock.take()  # without another wait
    assert capsys.readouterr().err == "" and held_by(tmp_path)["host"] == HERE["host"]
    run_lock.release()


def test_a_beat_between_check_and_take_counts(tmp_path):
    written(tmp_path, host="other", beat="1")
    run_lock = mine(tmp_path)
    run_lock.check()
    written(tmp_path, host="other", beat="2")
    with pytest.raises(InterruptedError):
        watching(run_lock).take()


def test_release_while_watched(tmp_path):
    there = mine(tmp_path, THERE, beat=1e6)
    there.take()
    timer = threading.Timer(0.1, there.release)
    timer.start()
    taken(tmp_path, mine(tmp_path, **PATIENT))
    timer.join()


def test_clocks_are_not_compared(tmp_path, monkeypatch):
    """A holder whose clock runs backwards is alive; one whose file is from the future is dead."""
    now = [2e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    with mine(tmp_path, THERE):
        refused(mine(tmp_path, **PATIENT))
    written(tmp_path, host="other", since="2999-01-01 00:00:00")
    os.utime(tmp_path / "out" / lock.NAME, (4e9, 4e9))
    taken(tmp_path, mine(tmp_path))


@pytest.mark.parametrize("there", ["same machine", "other machine"])
def test_a_requeued_slurm_job_takes_over_at_once(tmp_path, there):
    place = {} if there == "same machine" else {"host": "other", "boot": "b"}
    written(tmp_path, job="12", restarts="1", **place)
    taken(tmp_path, mine(tmp_path, {**HERE, "job": "12", "restarts": "2"}, watch=1e6))


def test_another_job_or_another_node_of_the_same_job_is_watched(tmp_path):
    """Two nodes of one job that use the same folder, and another job."""
    for job, restarts in (("12", "1"), ("13", "")):
        written(tmp_path, host="other", job=job, restarts=restarts)
        with pytest.raises(InterruptedError):
            watching(mine(tmp_path, {**HERE, "job": "12", "restarts": "1"})).take()


def test_slurm_variables(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert [machine_identity()[name] for name in ("job", "restarts")] == ["12", "3"]


def test_a_suspended_holder_notices_that_it_lost_the_lock(tmp_path, capsys):
    stopped = mine(tmp_path, THERE, beat=1e6)
    stopped.take()
    here = mine(tmp_path)
    here.take()
    stopped.beat = 0.01
    stopped._keep_beating(threading.Event())
    assert stopped.lost and "lost its lock" in capsys.readouterr().err
    stopped.release()
    assert held_by(tmp_path)["token"] == here.token and not here.lost
    here.release()


# ---- damage to the lock file ----


@pytest.mark.slow
def test_a_damaged_lock_file_is_watched_and_taken_over(tmp_path):
    for content in (b"", b'{"host": ', b"[1]", b"\xff\xfe", b"[" * 10000):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / lock.NAME).write_bytes(content)
        with pytest.raises(InterruptedError):
            watching(mine(tmp_path)).check()
    taken(tmp_path, mine(tmp_path))


@pytest.mark.parametrize("pid", [0, -1, True, "7", 1.5, None])
def test_an_invalid_pid_is_never_signalled(tmp_path, pid):
    written(tmp_path, pid=pid)
    with pytest.raises(InterruptedError):
        watching(mine(tmp_path)).check()
    written(tmp_path, pid=2**80)  # no process has it
    watching(mine(tmp_path)).check()


def test_a_deleted_folder_is_not_a_lost_lock(tmp_path):
    with mine(tmp_path) as run_lock:
        os.unlink(tmp_path / "out" / lock.NAME)
        (tmp_path / "out").rename(tmp_path / "gone")
        time.sleep(0.1)
    assert not run_lock.lost and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_failed_beat_is_not_a_lost_lock(tmp_path, number, monkeypatch):
    def fails(*arguments):
        calls.append(arguments)
        raise OSError(number, os.strerror(number))

    calls = []
    monkeypatch.setattr(os, "pwrite", fails)
    with mine(tmp_path) as run_lock:
        wait_until(lambda: len(calls) > 2)
        monkeypatch.undo()
        wait_until(lambda: int(held_by(tmp_path)["beat"]) > 0)
    assert not run_lock.lost


def test_a_beat_needs_no_disk_space(tmp_path):
    with mine(tmp_path) as run_lock:
        path = tmp_path / "out" / lock.NAME
        before = path.stat()
        wait_until(lambda: int(held_by(tmp_path)["beat"]) > 2)
        after = path.stat()
        assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert not run_lock.lost


def test_a_read_only_folder(tmp_path, monkeypatch):
    def fails(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(lock, "write_text", fails)
    with pytest.raises(OSError) as error:
        mine(tmp_path).take()
    assert error.value.errno == errno.EROFS
    monkeypatch.undo()
    taken(tmp_path, mine(tmp_path))


@contextlib.contextmanager
def no_lock(path, **options):
    """`lock.exclusive` on a file system without advisory locks."""
    yield False


def test_without_advisory_locks_the_last_rename_wins(tmp_path, monkeypatch):
    """A competing process that writes right after this one is the holder."""

    def rival(seconds):
        written(tmp_path, host="other", token="rival")

    monkeypatch.setattr(lock, "exclusive", no_lock)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", rival)
        with pytest.raises(FolderInUse, match="on other"):
            mine(tmp_path).take()
        assert held_by(tmp_path)["token"] == "rival"
    monkeypatch.setattr(lock, "SETTLE", 0)
    (tmp_path / "out" / lock.NAME).unlink()
    taken(tmp_path, mine(tmp_path))


@pytest.mark.slow
def test_exclusive_waits_for_the_holder_and_for_a_deleted_file(tmp_path):
    """The first holder deletes the file; the second one must lock the new file."""
    path = tmp_path / "lock"
    code = "import sys\nfrom pathlib import Path\nfrom storage.lock import exclusive\npath = Path(sys.argv[1])\n"
    code += "with exclusive(path, patience=0.1) as is_held: print(is_held, flush=True)\n"
    code += "with exclusive(path, message='waiting') as is_held: print(is_held, path.exists(), flush=True)\n"
    words = [sys.executable, "-c", code, str(path)]
    with lock.exclusive(path) as is_held:
        assert is_held
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "False\n" and process.stderr.readline() == "waiting\n"
        path.unlink()
    assert process.communicate(timeout=20) == ("True True\n", "")


def test_control_characters_in_a_host_name_are_not_printed(tmp_path):
    written(tmp_path, host="a\x1b[2J\nb")
    with pytest.raises(FolderInUse) as error:
        raise mine(tmp_path)._in_use((tmp_path / "out" / lock.NAME).read_bytes())
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
