"""The benchmarks of the GPT run with small sizes, and their ratios are those of their times."""

import json

import pytest
import torch
from forked_runs import server

pytestmark = pytest.mark.slow

TINY = ["--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--steps", "40", "--skip", "10", "--rounds", "1"]


def run(*words):
    return server()(words)


def test_the_step_benchmark_compares_loops_that_train_the_same_weights_alike():
    done = run("benchmarks/gpt_step.py", *TINY, "--verbose")
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout.splitlines()[-1])
    assert times["keel_ms"] / times["bare_loop_ms"] == pytest.approx(times["ratio"], abs=0.01)
    assert times["keel_ms"] / times["nano_loop_ms"] == pytest.approx(times["nano_ratio"], abs=0.01)
    lines = done.stderr.splitlines()
    bare = [float(line.split("norm ")[1]) for line in lines if line.startswith("step") and ", norm" in line]
    keel = [float(line.split("grad_norm ")[1].split()[0]) for line in lines if "grad_norm" in line]
    assert len(bare) == 4 and keel == pytest.approx(bare, abs=2e-3)


def test_the_gpu_benchmark_runs_without_a_gpu():
    done = run("benchmarks/gpu.py", "--tiny", "--device", "cpu", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind in ("compiled", "plain"):
        rates = {name: found[kind][name]["tokens_per_second"] for name in ("bare", "keel")}
        assert rates["keel"] / rates["bare"] == pytest.approx(found[kind]["ratio"], abs=0.01)


@pytest.mark.parametrize("words", [["--device", "cpu"], []])
def test_the_gpu_benchmark_says_in_one_line_that_it_needs_a_gpu(words):
    if not words and torch.cuda.is_available():
        pytest.skip("there is one")
    done = run("benchmarks/gpu.py", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "--tiny" in done.stderr.splitlines()[-1]
