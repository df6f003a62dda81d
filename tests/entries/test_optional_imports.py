"""peft and bitsandbytes are imported where a run asks for them, and nowhere else."""

import subprocess
import sys

import pytest
from fresh_interpreter import ROOT, python

pytestmark = pytest.mark.slow

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
def words(run):
    return run.words("save_strategy: no", max_steps=1)


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


def test_transformers_still_finds_adapters_beside_weights():
    """Modules that look for peft find it; the Trainer finds it only when the run has imported it."""
    program = """
import sys
from trainer.hf_patches import connect_peft, defer_peft
defer_peft()
import transformers.integrations.peft as integration, transformers.trainer, transformers.trainer_utils as utils
assert "peft" not in sys.modules and integration.is_peft_available() and not utils.is_peft_available()
import peft, torch
connect_peft()
assert utils.is_peft_available() and not utils._is_peft_model(torch.nn.Linear(1, 1))
config = peft.LoraConfig(target_modules=["0"])
assert utils._is_peft_model(peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(1, 1)), config))
"""
    python(program)
