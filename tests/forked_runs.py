"""Real processes of Keel's programs without their imports: one server process imports everything once and forks.

python tests/forked_runs.py      reads one JSON line for each process and writes one: see `Server`
"""

import atexit
import contextlib
import errno
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120  # seconds of one run
# What the runs of several tests import beside train.py: half of the time of a small run.
IMPORTED = (
    "data.demonstrations.build_bundle",
    "data.text.dataset",
    "loader.checks.static_checks",
    "loader.output.training_arguments",
    "loader.resume.compatibility",
    "models.adapt.build",
    "models.gpt.network",
    "models.mlp.network",
)


class Server:
    """The server process; it ends when its input is closed, by `close` or with the process that started it."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, **pipes)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def __call__(self, words, troubles=(), environment=None, cwd=ROOT, timeout=TIMEOUT):
        """Run `python WORDS` to its end, as `subprocess.run` does.

        Args:
            troubles: See `ForkedRuns`.
            environment: All variables of the process; by default those of this one.
        """
        environment = dict(os.environ if environment is None else environment)
        request = {"words": list(map(str, words)), "troubles": troubles, "environment": environment}
        request |= {"cwd": str(cwd), "timeout": timeout}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return subprocess.CompletedProcess(words, *json.loads(self.process.stdout.readline()))


@functools.cache
def server():
    """This process's server."""
    started = Server()
    atexit.register(started.close)
    return started


class ForkedRuns:
    """Runs of `train.py` that are really killed."""

    def __call__(self, words, *troubles):
        """Return the exit code (negative for a signal) and the output of one run.

        Args:
            troubles: `(event, step, number, signal)` each: the process gets the signal at the `number`-th callback
                event (from 0) of a step; or at `publish` and `published` (before and after the step's checkpoint is
                renamed), `final` and `finished` (before and after the final model gets its manifest). `full` in place
                of a signal raises ENOSPC there.
        """
        done = server()(["train.py", *words], troubles)
        return done.returncode, done.stdout + done.stderr


# ---- the server ----


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not mix with the answers
    import accelerate.commands.launch  # noqa: F401
    import torch.distributed.run  # noqa: F401
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    import train  # noqa: F401
    import trainer.trainer  # noqa: F401

    for name in IMPORTED:
        importlib.import_module(name)
    SubprocessHandler._popen = lambda self, command, environment: Fork(command[1:], environment)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["cwd"])
        folder = Path(tempfile.mkdtemp())  # no TemporaryDirectory, which a fork's end would delete
        files = [folder / name for name in ("stdout", "stderr")]
        child = Fork(request["words"], request["environment"], request["troubles"], files)
        try:
            code = child.wait(request["timeout"])
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            code = f"timeout {child.wait(TIMEOUT)}"
        answers.write(json.dumps([code, *(file.read_text(errors="replace") for file in files)]) + "\n")
        answers.flush()
        shutil.rmtree(folder)


class Fork:
    """What `subprocess.Popen(["python", *words], start_new_session=True)` is, made by a fork.

    Args:
        files: Two new files that get the process's output; by default it goes where this process's goes.
    """

    def __init__(self, words, environment, troubles=(), files=()):
        self.returncode = None
        sys.stdout.flush()  # or both would print what waits
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(words, environment, troubles, files))

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("python", timeout)
            time.sleep(0.01)
        return self.returncode


def _run(words, environment, troubles, files):
    """The exit code of `python WORDS`, run in this process, which ends with it."""
    os.setsid()
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a launcher has handlers of its own
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdout.reconfigure(write_through="-u" in words)
    os.environ.clear()
    os.environ.update(environment)
    try:
        for trouble in troubles:
            _install(*trouble)
        words = list(words)[words[0] == "-u" :]
        is_module = words[0] == "-m"
        sys.argv = words[is_module:]
        sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.abspath(sys.argv[0]))
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):  # as an interpreter ends
        threading._shutdown()
        atexit._run_exitfuncs()
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


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
