#!/usr/bin/env python3
"""Stands in for train.py where only the sweep is tested: a run that writes its log, and ends as it is asked to.

Each start adds a line to OUT/starts.jsonl: its words, process number, and what it sees of devices and threads. Each
step takes `step_seconds` of behaviour.json beside this file and evaluates |log10(learning_rate) + 3| + 1 / step. A
signal ends it with 75 after a step, and `resume_from_checkpoint=auto` goes on after that step; `codes` of
behaviour.json has other exit codes, by the run's number, and a run begins when `together` of a sweep have started.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 4


def main():
    words = sys.argv[1:]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    out = Path(json.loads(given["output_dir"]))
    out.mkdir(parents=True, exist_ok=True)
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    log = out / "metrics.jsonl"
    resumes = given.get("resume_from_checkpoint") == "auto" and log.exists()
    first = log.read_text().count("\n") + 1 if resumes else 1
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    append(out / "starts.jsonl", {"words": words, "pid": os.getpid(), "began": time.time(), "first": first, **seen})
    behaviour = json.loads(Path(__file__).with_name("behaviour.json").read_text())
    deadline = time.monotonic() + 60
    while len(list(out.parent.glob("*/starts.jsonl"))) < behaviour["together"] and time.monotonic() < deadline:
        time.sleep(0.02)
    for step in range(first, STEPS + 1):
        time.sleep(behaviour["step_seconds"])
        value = abs(math.log10(float(given.get("learning_rate", 1e-3))) + 3) + 1 / step
        append(log, {"step": step, "eval_loss": value, "eval_improvement": -value})
        if asked:
            sys.exit(75)
    append(out / "ends.jsonl", {"ended": time.time()})
    code = behaviour["codes"].get(out.name, 0)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def append(path, record):
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
