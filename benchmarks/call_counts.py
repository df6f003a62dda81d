"""How much of Keel's own code runs: files and functions executed in one optimizer step, one `--check`, one resume.

    python benchmarks/call_counts.py

A small GPT on a small text. A reader who follows one of the three has to read about that many files. Prints one JSON
line: for each of the three `[files, functions]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.hf_patches import defer_peft

defer_peft()  # before anything imports transformers' Trainer

TEXT = "To be, or not to be, that is the question.\n" * 400
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}
SETTINGS = ["save_strategy=no", "logging_steps=1000", "eval_strategy=no", "report_to=none"]
MEASURED_STEP = 3  # the first steps set things up


class Counter:
    """Records which functions of Keel are called, in all threads, between `start` and `stop`."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()

    def _record(self, frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(f"{ROOT}/") and "/benchmarks/" not in name and "/.venv" not in name:
            self.functions.add((name, frame.f_code.co_qualname))

    def start(self) -> None:
        threading.setprofile(self._record)
        sys.setprofile(self._record)

    def stop(self) -> list[int]:
        sys.setprofile(None)
        threading.setprofile(None)
        functions = {(file, name) for file, name in self.functions if name != "<module>"}
        return [len({file for file, _ in functions}), len(functions)]


def count_step(arguments: list[str]) -> list[int]:
    """Count from the end of one optimizer step to the end of the next."""
    from transformers import TrainerCallback

    import train

    counter, counts = Counter(), []

    class Probe(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == MEASURED_STEP - 1:
                counter.start()
            elif state.global_step == MEASURED_STEP:
                counts.extend(counter.stop())

    build = train.build_trainer

    def build_with_probe(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.add_callback(Probe())
        return trainer

    train.build_trainer = build_with_probe
    train.main(arguments)
    return counts


def count_run(arguments: list[str]) -> list[int]:
    """Count a whole call of `train.main`."""
    import train

    counter = Counter()
    counter.start()
    try:
        train.main(arguments)
    except SystemExit as ended:
        assert not ended.code, ended.code
    return counter.stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder, "text.txt"), Path(folder, "out")
        text.write_text(TEXT, encoding="utf-8")
        environment = {**os.environ, "KEEL_HOME": str(Path(folder, "home")), "OMP_NUM_THREADS": "1"}

        def run(*command: str) -> list[int]:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            )
            return json.loads(done.stdout.splitlines()[-1]) if command[0] == __file__ else []

        run("prepare.py", "--dataset", "tiny", "--text", str(text), "--tokenizer", "char")
        common = ["--task_name", "text", "--dataset", "tiny", "--training_config", "default", "--model_config", "gpt"]
        common += [word for name, value in MODEL.items() for word in (f"--{name}", str(value))]
        common += ["--lr_scheduler_type", "constant", "--output_dir", str(out), "--set", *SETTINGS]
        step = run(__file__, "step", *common, f"max_steps={MEASURED_STEP + 1}", f"output_dir={out}-step")
        check = run(__file__, "run", *common, "max_steps=4", "--check")
        run("train.py", *common, "max_steps=4", "save_strategy=steps", "save_steps=4")
        resume = run(
            __file__,
            "run",
            *common,
            "max_steps=6",
            "save_strategy=steps",
            "save_steps=4",
            "resume_from_checkpoint=auto",
        )
    print(json.dumps({"benchmark": "call_counts", "step": step, "check": check, "resume": resume}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        counted = (count_step if sys.argv[1] == "step" else count_run)(sys.argv[2:])
        print(json.dumps(counted), flush=True)
    else:
        main()
