"""Runs of `train.py` in two processes on a CPU, as a user launches them, and faults in one of them.

A launch takes some seconds, so that a test should check several things of each.
"""

import atexit
import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from forked_runs import server
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parent.parent
CALLBACK = "several_processes.Trouble"
LONGEST = 240  # seconds; a launch that hangs fails


def launched(config, words, **environment):
    """Run `accelerate launch --config_file scripts/accelerate/CONFIG --num_processes 2 train.py WORDS` to its end."""
    start = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"scripts/accelerate/{config}",
        "--num_processes",
        "2",
    ]
    command = [*start, "--main_process_port", "0", "train.py", *words]
    return server()(command, environment=on_cpu(**environment), timeout=LONGEST)


def on_cpu(**more):
    """The environment of two processes without a GPU."""
    here = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {
        **os.environ,
        **here,
        "PYTHONPATH": str(ROOT / "tests"),
        **{name: str(value) for name, value in more.items()},
    }


class Trouble(TrainerCallback):
    """A callback for YAML. The environment defines the faults, so that a resumed run has the same training file.

    TROUBLE      `KIND:STEP:RANK …`: an `error`; a `kill`; a `term` (SIGTERM) to the process, or to its `launcher`,
                 which passes it on later: the step waits for it; a `full` disk at the process's next save
    WROTE        a folder: `RANK.json` will list the files that a process has written
    """

    def __init__(self):
        self.faults = [fault.split(":") for fault in os.environ.get("TROUBLE", "").split()]
        if "WROTE" in os.environ:
            watch_writes(Path(os.environ["WROTE"]) / f"{os.environ['RANK']}.json")

    def on_step_end(self, args, state, control, **kwargs):
        for kind, step, rank in self.faults:
            if (state.global_step, args.process_index) == (int(step), int(rank)):
                self.cause(kind)

    def cause(self, kind):
        if kind == "error":
            raise RuntimeError("an error of this test")
        if kind == "full":
            fill_the_disk_once()
            return
        number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
        os.kill(os.getppid() if kind == "launcher" else os.getpid(), number)
        signals = signal.getsignal(signal.SIGTERM).__self__  # trainer.preemption.Signals
        patience = time.monotonic() + LONGEST
        while signals.received is None and time.monotonic() < patience:
            time.sleep(0.01)


def fill_the_disk_once():
    from trainer.serialization import state_dict_io

    write = state_dict_io.write

    def full(*arguments):
        state_dict_io.write = write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state_dict_io.write = full


def watch_writes(path):
    """List at the end of the process the files that it opened for writing, those of safetensors included."""
    import safetensors.torch

    written, serialize = set(), safetensors.torch.serialize_file

    def serialize_file(tensors, filename, *rest, **options):
        written.add(str(filename))
        return serialize(tensors, filename, *rest, **options)

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            written.add(arguments[0])
        elif event in ("os.rename", "os.mkdir"):
            written.update(str(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike)))

    safetensors.torch.serialize_file = serialize_file
    sys.addaudithook(hook)
    atexit.register(lambda: path.write_text(json.dumps(sorted(written))))
