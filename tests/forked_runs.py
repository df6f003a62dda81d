"""Runs of `train.main` that are really killed: one server process imports everything once and forks for each run.

python tests/forked_runs.py      reads one JSON line for each run and writes one: see `ForkedRuns`
"""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from loader.command_line.entry import command_line

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120  # seconds of one run


class ForkedRuns:
    """Inside `with`, each call runs `train.main`."""

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception):
        self.server.stdin.close()
        try:
            self.server.wait(TIMEOUT)
        finally:
            self.server.kill()
            self.server.stdout.close()

    def __call__(self, words, *troubles):
        """Return the exit code (negative for a signal) and the output of one run.

        Args:
            troubles: `(event, step, number, signal)` each: the process gets the signal at the `number`-th callback
                event (from 0) of a step; or at `publish` and `published` (before and after the step's checkpoint is
                renamed), `final` and `finished` (before and after the final model gets its manifest). `full` in place
                of a signal raises ENOSPC there.
        """
        self.server.stdin.write(json.dumps({"words": list(map(str, words)), "troubles": troubles}) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return answer["code"], answer["text"]


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not mix with the answers
    import train
    import trainer.trainer  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        log = Path(f"/tmp/forked-run-{os.getpid()}.txt")
        child = os.fork()
        if child == 0:
            os._exit(_run(train, request, log))
        code = _ended(child)
        answers.write(json.dumps({"code": code, "text": log.read_text(errors="replace")}) + "\n")
        answers.flush()
        log.unlink()


def _ended(child):
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def _run(train, request, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        for trouble in request["troubles"]:
            _install(*trouble)
        command_line(train.main, request["words"])
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for worker in multiprocessing.active_children():
            worker.kill()


def _install(event, step, number, what):
    from storage import manifest
    from trainer.callbacks.hooks import Hooks
    from trainer.checkpointing import async_writer

    if event in ("publish", "published"):
        _wrap(async_writer, "publish", event, lambda staged, final: final.name == f"checkpoint-{step}", what)
    elif event in ("final", "finished"):
        _wrap(manifest, "publish_into", event, lambda *arguments, **facts: True, what)
    else:
        original, seen = getattr(Hooks, event, lambda *arguments, **options: None), []

        def handler(self, args, state, control, **options):
            if state.global_step == step:
                seen.append(step)
                if len(seen) == number + 1:
                    os.kill(os.getpid(), what)
            return original(self, args, state, control, **options)

        setattr(Hooks, event, handler)


def _wrap(module, name, event, applies, what):
    original = getattr(module, name)

    def called(*arguments, **options):
        is_here = applies(*arguments, **options)
        if is_here and what == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if is_here and event in ("publish", "final"):
            os.kill(os.getpid(), what)
        original(*arguments, **options)
        if is_here and event in ("published", "finished"):
            os.kill(os.getpid(), what)

    setattr(module, name, called)


if __name__ == "__main__":
    serve()
