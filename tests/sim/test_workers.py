"""The worker processes: results, errors, deaths and endings."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulated_policies import doubling

from sim.workers import run
from storage.lock import is_alive

ROOT = Path(__file__).resolve().parents[2]


def with_tests_on_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


@pytest.mark.slow
def test_results_come_with_their_tasks_from_as_many_processes():
    pairs = dict(run(doubling, range(6), num_workers=2))
    assert {task: result[0] for task, result in pairs.items()} == {task: 2 * task for task in range(6)}
    processes = {result[1] for result in pairs.values()}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes


@pytest.mark.slow
def test_a_worker_computes_with_one_thread_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [result[2] for _, result in run(doubling, [1], num_workers=1)] == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [result[2] for _, result in run(doubling, [1], num_workers=1)] == ["3"]


def test_zero_workers_is_this_process():
    assert {result[1] for _, result in run(doubling, [1, 2], num_workers=0)} == {os.getpid()}
    assert list(run(doubling, [], num_workers=None)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        (13, ValueError, "^thirteen is unlucky$"),
        (14, KeyError, "no fourteen"),
        (15, RuntimeError, "worker process"),
    ],
)
def test_errors_and_deaths_reach_the_caller_and_leave_no_process(task, kind, message):
    with pytest.raises(kind, match=message):
        list(run(doubling, [1, 2, task, 3], num_workers=2))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_closing_early_ends_all_workers():
    results = run(doubling, range(100), num_workers=2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_closing_does_not_wait_for_a_result_that_is_half_sent():
    code = (
        "import time; from simulated_policies import filling; from sim.workers import run\n"
        "if __name__ == '__main__':\n"
        "    for wait in (0.3, 0.5, 0.7, 0.9):\n"
        "        results = run(filling, [1, *[100_000_000] * 8], num_workers=2); next(results)\n"
        "        time.sleep(wait); results.close()\n"
        "    print('closed')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=with_tests_on_path(), capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "closed\n", ended.stderr


@pytest.mark.slow
def test_workers_that_are_done_leave_no_semaphore_behind():
    code = (
        "from simulated_policies import locking; from sim.workers import run\n"
        "print([result[0] for _, result in run(locking, [1, 2, 3], num_workers=2)])"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=with_tests_on_path(), capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("[2, 4, 6]\n", "")


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys; from pathlib import Path; from simulated_policies import sleeping; from sim.workers import run\n"
        "list(run(sleeping, [Path(sys.argv[1])] * 2, num_workers=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=with_tests_on_path())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    while any(is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(is_alive(worker) for worker in workers)
