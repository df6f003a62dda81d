"""peft and bitsandbytes are imported where a run asks for them, and nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest
import small_runs

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import sys
import train
train.main(sys.argv[1:])
print("imported:", *sorted({"peft", "bitsandbytes"} & set(sys.modules)))
"""


def train(words):
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def words(tmp_path):
    runs = small_runs.SmallRuns(tmp_path)
    return runs.words("save_strategy: no\n", out="out", max_steps=1)


def test_a_plain_run_imports_neither(words):
    done = train(words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert "gemm_4bit_forward" not in done.stderr


def test_lora_imports_peft_without_a_warning_about_kernels(words):
    done = train([*words, "--set", "lora_enable=true", "lora_r=2"])
    assert done.returncode == 0, done.stderr
    assert "peft" in done.stdout.splitlines()[-1]
    assert "gemm_4bit_forward" not in done.stderr + done.stdout
