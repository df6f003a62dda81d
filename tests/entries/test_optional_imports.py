"""peft and bitsandbytes are imported where a run asks for them, and nowhere else."""

import subprocess
import sys

import pytest
from fresh_interpreter import ROOT, python

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import train
*words, folder = sys.argv[1:]
for name, more in (("plain", []), ("adapted", ["--set", "lora_enable=true", "lora_r=2"])):
    train.main([*words, "--output_dir", f"{folder}/{name}", *more])
    print("imported:", *sorted({"peft", "bitsandbytes"} & set(sys.modules)))
"""


def test_a_plain_run_imports_neither_and_lora_peft_without_a_warning_about_kernels(run):
    words = run.words("save_strategy: no", max_steps=1)
    command = [sys.executable, "-c", PROGRAM, *words, str(run.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, adapted = (line for line in done.stdout.splitlines() if line.startswith("imported:"))
    assert plain == "imported:" and "peft" in adapted
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
