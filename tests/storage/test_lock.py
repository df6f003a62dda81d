"""One run at a time in a folder. Other machines are RunLock objects that are told they run elsewhere."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage import lock
from storage.lock import Held, Machine, RunLock

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = replace(Machine.here(), machine="m", job="", restarts="")
THERE = Machine(host="other", machine="o", boot="b", pids="p")
QUICK = {"beat": 0.02, "watch": 0.4}  # for holders that are dead
PATIENT = {"beat": 0.02, "watch": 60}  # for those that live: the first beat ends the wait
HOLDER = """
import sys, time
from pathlib import Path
from storage.lock import Machine, RunLock
machine = Machine(**eval(sys.argv[2]))
RunLock(Path(sys.argv[1]), machine=machine, beat=0.02, watch=0.4).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """`holder(machine)`: a living process that holds the folder, as it would on that machine."""
    started = []

    def start(machine=HERE):
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "out"), repr(vars(machine))]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
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
    """A lock file as if somebody had left it."""
    (tmp_path / "out").mkdir(exist_ok=True)
    content = {**vars(HERE), "pid": os.getppid(), "started": lock.process_start(os.getppid()), "token": "t"} | facts
    (tmp_path / "out" / lock.NAME).write_text(json.dumps(content))


def mine(tmp_path, machine=HERE, **more):
    return RunLock(tmp_path / "out", machine=machine, **{**QUICK, **more})


def refused(run_lock):
    with pytest.raises(Held) as error:
        run_lock.check()
    with pytest.raises(Held) as again:
        run_lock.take()
    assert str(error.value) == str(again.value) and "\n" not in str(error.value)
    return str(error.value)


def taken(tmp_path, run_lock):
    """Checks, takes, and looks whether the file says so."""
    run_lock.check()
    run_lock.take()
    assert held_by(tmp_path)["token"] == run_lock.token
    run_lock.release()
    assert list((tmp_path / "out").iterdir()) == []


# ---- this machine ----


def test_a_second_live_process_is_refused(tmp_path, holder):
    process = holder()
    text = refused(mine(tmp_path))
    assert str(tmp_path / "out") in text and f"process {process.pid} on {HERE.host}" in text and "--output_dir" in text
    assert process.poll() is None and held_by(tmp_path)["pid"] == process.pid


def test_a_killed_holders_lock_is_taken_over_at_once(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    taken(tmp_path, mine(tmp_path, watch=1e6))


def test_a_holder_that_nobody_has_waited_for_is_dead_too(tmp_path, holder):
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, and stays one
    taken(tmp_path, mine(tmp_path, watch=1e6))


def test_another_process_with_the_number_of_the_holder(tmp_path):
    written(tmp_path)
    refused(mine(tmp_path))
    written(tmp_path, started="1")
    taken(tmp_path, mine(tmp_path, watch=1e6))


def test_where_the_system_does_not_tell_when_a_process_began_it_is_the_holder(tmp_path, monkeypatch):
    written(tmp_path, started="1")
    monkeypatch.setattr(lock, "process_start", lambda pid: "")
    refused(mine(tmp_path))


def test_a_process_of_another_user_is_alive():
    assert lock.is_alive(1)
    assert not lock.is_alive(2**22 + 1) and not lock.is_alive(2**80)


def test_after_a_reboot(tmp_path):
    """The machine id says that it is the same machine; without one a name proves nothing, so the file is watched."""
    written(tmp_path, boot="before")
    taken(tmp_path, mine(tmp_path, watch=1e6))
    written(tmp_path, boot="before", machine="")
    with pytest.raises(InterruptedError):
        watching(mine(tmp_path, replace(HERE, machine=""))).check()


def watching(run_lock):
    """A lock that raises instead of watching."""

    def watch(content):
        raise InterruptedError

    run_lock._watch = watch
    return run_lock


def test_the_number_of_a_process_means_nothing_in_another_container(tmp_path):
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
    assert held_by(tmp_path)["token"] == second.token  # released is only what is still one's own
    second.release()


def test_as_a_context(tmp_path):
    with mine(tmp_path) as run_lock:
        assert held_by(tmp_path)["token"] == run_lock.token
    assert not (tmp_path / "out" / lock.NAME).exists()
    run_lock.release()  # once more does no harm


def test_forked_children_neither_hold_nor_release_nor_beat(tmp_path):
    run_lock = mine(tmp_path, beat=1e6)
    run_lock.take()
    before = held_by(tmp_path)
    child = os.fork()
    if not child:
        run_lock.release()
        try:
            run_lock.take()
        except Held:
            os._exit(7 if threading.active_count() == 1 else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert held_by(tmp_path) == before
    run_lock.release()


def test_one_of_many_takers_wins(tmp_path):
    """Twelve processes at once, over a lock that was left behind."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom storage.lock import Held, RunLock\n"
        "lock = RunLock(Path(sys.argv[1]))\nsys.stdin.read()\n"
        "try: lock.take()\nexcept Held: print('refused')\nelse: print('held', flush=True); time.sleep(60)\n"
    )
    written(tmp_path, started="1", **{name: getattr(Machine.here(), name) for name in ("machine", "boot", "pids")})
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen(words, cwd=ROOT, **pipes) for _ in range(12)]
    try:
        for each in rivals:
            each.stdin.close()
        answers = [each.stdout.readline() for each in rivals]
        assert sorted(answers) == ["held\n"] + ["refused\n"] * 11
        assert held_by(tmp_path)["pid"] == rivals[answers.index("held\n")].pid
    finally:
        for each in rivals:
            each.kill()
            each.wait()
            each.stdout.close()


# ---- other machines ----


def wait_until(holds):
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")


def test_another_machine_that_lives_keeps_its_folder(tmp_path, holder, capsys):
    """Its process is not to be found here, but its file changes."""
    process = holder(THERE)
    text = refused(mine(tmp_path, **PATIENT))
    assert f"process {process.pid} on other" in text
    assert "waiting 60 s" in capsys.readouterr().err


def test_another_machine_that_died_is_taken_over(tmp_path, holder, capsys):
    process = holder(THERE)
    process.kill()
    process.wait()
    run_lock = mine(tmp_path)
    run_lock.check()
    content = (tmp_path / "out" / lock.NAME).read_bytes()
    assert json.loads(content)["host"] == "other"  # looking changes nothing
    assert len(capsys.readouterr().err.splitlines()) == 1
    run_lock.take()  # watched long enough already
    assert capsys.readouterr().err == "" and held_by(tmp_path)["host"] == HERE.host
    run_lock.release()


def test_a_beat_between_looking_and_taking_counts(tmp_path):
    written(tmp_path, host="other", beat="1")
    run_lock = mine(tmp_path)
    run_lock.check()
    written(tmp_path, host="other", beat="2")
    with pytest.raises(InterruptedError):
        watching(run_lock).take()


def test_a_folder_that_is_released_while_it_is_watched_is_free(tmp_path):
    there = mine(tmp_path, THERE, beat=1e6)
    there.take()
    timer = threading.Timer(0.1, there.release)
    timer.start()
    taken(tmp_path, mine(tmp_path, **PATIENT))
    timer.join()


def test_clocks_are_not_compared(tmp_path, monkeypatch):
    """A holder whose clock runs backwards lives; one that died in the future of ours is dead."""
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
def test_a_requeued_slurm_job_goes_on_at_once(tmp_path, there):
    place = {} if there == "same machine" else {"host": "other", "boot": "b"}
    written(tmp_path, job="12", restarts="1", **place)
    taken(tmp_path, mine(tmp_path, replace(HERE, job="12", restarts="2"), watch=1e6))


def test_what_is_no_requeued_job_is_watched(tmp_path):
    """Two nodes of one job that both train into the folder, and a job of another number."""
    for job, restarts in (("12", "1"), ("13", "")):
        written(tmp_path, host="other", job=job, restarts=restarts)
        with pytest.raises(InterruptedError):
            watching(mine(tmp_path, replace(HERE, job="12", restarts="1"))).take()


def test_slurm_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert (Machine.here().job, Machine.here().restarts) == ("12", "3")


def test_a_holder_that_was_stopped_for_too_long_learns_that_it_lost(tmp_path, capsys):
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


# ---- what befalls the file ----


def test_a_lock_file_nobody_can_read_is_watched_and_taken_over(tmp_path):
    for content in (b"", b'{"host": ', b"[1]", b"\xff\xfe", b"[" * 10000):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / lock.NAME).write_bytes(content)
        with pytest.raises(InterruptedError):
            watching(mine(tmp_path)).check()
    taken(tmp_path, mine(tmp_path))


@pytest.mark.parametrize("pid", [0, -1, True, "7", 1.5, None, 2**80])
def test_a_number_that_is_none_of_a_process_signals_nobody(tmp_path, pid):
    written(tmp_path, pid=pid)
    run_lock = watching(mine(tmp_path))
    if pid == 2**80:
        run_lock.check()
    else:
        with pytest.raises(InterruptedError):
            run_lock.check()


@pytest.mark.parametrize("damage", ["deleted", "emptied"])
def test_a_holder_writes_its_file_anew(tmp_path, damage):
    with mine(tmp_path) as run_lock:
        path = tmp_path / "out" / lock.NAME
        path.unlink() if damage == "deleted" else path.write_bytes(b"")
        wait_until(lambda: path.exists() and path.stat().st_size)
        assert held_by(tmp_path)["token"] == run_lock.token
    assert not run_lock.lost and not path.exists()


def test_a_folder_that_is_gone_ends_nothing(tmp_path):
    with mine(tmp_path) as run_lock:
        os.unlink(tmp_path / "out" / lock.NAME)
        (tmp_path / "out").rename(tmp_path / "gone")
        time.sleep(0.1)
    assert not run_lock.lost and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_takes_no_beat_is_no_loss(tmp_path, number, monkeypatch):
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


def test_a_beat_needs_no_further_space(tmp_path):
    with mine(tmp_path) as run_lock:
        path = tmp_path / "out" / lock.NAME
        before = path.stat()
        wait_until(lambda: int(held_by(tmp_path)["beat"]) > 2)
        after = path.stat()
        assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert not run_lock.lost


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def fails(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(lock, "write_text", fails)
    with pytest.raises(OSError, match="Read-only"):
        mine(tmp_path).take()
    monkeypatch.undo()
    taken(tmp_path, mine(tmp_path))


def test_without_advisory_locks_the_last_rename_wins(tmp_path, monkeypatch):
    """A rival that writes right after us is the holder; we hear of it before we believe to be it."""

    def rival(seconds):
        written(tmp_path, host="other", token="rival")

    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(time, "sleep", rival)
    with pytest.raises(Held, match="on other"):
        mine(tmp_path).take()
    assert held_by(tmp_path)["token"] == "rival"
    monkeypatch.undo()
    monkeypatch.setattr(lock, "SETTLE", 0)
    monkeypatch.setattr(lock, "_guarded", lambda path: None)
    (tmp_path / "out" / lock.NAME).unlink()
    taken(tmp_path, mine(tmp_path))


def test_a_name_cannot_write_on_the_terminal(tmp_path):
    written(tmp_path, host="a\x1b[2J\nb")
    with pytest.raises(Held) as error:
        raise mine(tmp_path)._held((tmp_path / "out" / lock.NAME).read_bytes())
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)


def test_a_pipe_is_a_lock_file_that_cannot_be_read(tmp_path):
    """It is watched as such, and then replaced; opening it would wait for ever."""
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / lock.NAME)
    taken(tmp_path, mine(tmp_path))


def test_a_pipe_put_in_the_place_of_a_held_lock_is_no_loss(tmp_path):
    holding = mine(tmp_path, beat=60)
    holding.take()
    (tmp_path / "out" / lock.NAME).unlink()
    os.mkfifo(tmp_path / "out" / lock.NAME)
    with pytest.raises(OSError):  # not a wait; the beating thread tries again later
        holding._beat_once(1)
    assert not holding.lost
    holding.release()


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys; before = set(sys.modules); import storage.lock; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = {name.partition(".")[0] for name in eval(done.stdout)} - set(sys.stdlib_module_names)
    assert foreign == {"storage"}
