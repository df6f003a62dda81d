"""Runs of `train.py` in two processes on a CPU, as a user launches them, and trouble that befalls one of them.

A launch takes some fifteen seconds, so a test asks several things of each.
"""

import atexit
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parent.parent
CALLBACK = "several_processes.Trouble"
LONGEST = 240  # seconds; a launch that hangs fails


def launched(config, words, **environment):
    """`accelerate launch --config_file scripts/accelerate/CONFIG --num_processes 2 train.py WORDS`, ended."""
    start = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"scripts/accelerate/{config}",
        "--num_processes",
        "2",
    ]
    return subprocess.run(
        [sys.executable, *start, "--main_process_port", "0", "train.py", *map(str, words)],
        cwd=ROOT,
        env=on_cpu(**environment),
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )


def on_cpu(**more):
    """The environment in which processes without a GPU find one another."""
    here = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here, "PYTHONPATH": str(ROOT / "tests"), **{name: str(each) for name, each in more.items()}}


class Trouble(TrainerCallback):
    """To be named in YAML. The environment says what happens, so that a resumed run has the same training file.

    TROUBLE      `KIND:STEP:RANK …`: an `error`, a `kill`, a `term` (SIGTERM) to the process or to its `launcher`, which
                 hands it on in its own time: the step ends when it has; a `full` disk when the process saves next
    WROTE        a folder: `RANK.json` will list the files that a process wrote
    """

    def __init__(self):
        self.coming = [each.split(":") for each in os.environ.get("TROUBLE", "").split()]
        if "WROTE" in os.environ:
            watch_writes(Path(os.environ["WROTE"]) / f"{os.environ['RANK']}.json")

    def on_step_end(self, args, state, control, **kwargs):
        for kind, step, rank in self.coming:
            if (state.global_step, args.process_index) == (int(step), int(rank)):
                self.befall(kind)

    def befall(self, kind):
        if kind == "error":
            raise RuntimeError("this process has had enough")
        if kind == "full":
            fill_the_disk_once()
            return
        number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
        os.kill(os.getppid() if kind == "launcher" else os.getpid(), number)
        heard = signal.getsignal(signal.SIGTERM).__self__  # trainer.preemption.Signals
        patience = time.monotonic() + LONGEST
        while heard.received is None and time.monotonic() < patience:
            time.sleep(0.01)


def fill_the_disk_once():
    from trainer.serialization import state_dict_io

    write = state_dict_io.write

    def full(*arguments):
        state_dict_io.write = write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state_dict_io.write = full


def watch_writes(path):
    """At its end the process lists what it opened for writing, and what safetensors did, which Python does not see."""
    import safetensors.torch

    written, serialize = set(), safetensors.torch.serialize_file

    def serialize_file(tensors, filename, *rest, **options):
        written.add(str(filename))
        return serialize(tensors, filename, *rest, **options)

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            written.add(arguments[0])
        elif event in ("os.rename", "os.mkdir"):
            written.update(str(each) for each in arguments[:2] if isinstance(each, (str, os.PathLike)))

    safetensors.torch.serialize_file = serialize_file
    sys.addaudithook(hook)
    atexit.register(lambda: path.write_text(json.dumps(sorted(written))))
