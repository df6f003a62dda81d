"""LoRA on a 4-bit base with averaged weights and frozen parts, for a policy and for a model of transformers."""

import json
import os
import shutil

import pytest
import torch
from demonstration_files import write_act_folder
from run_results import same, tensors

import train
from loader.resolve.resolver import read_saved
from models import export
from trainer.run_differences import metric_differences

ACT = """
model_config: act
model: {hidden_dim: 16, num_heads: 2, feedforward_dim: 32, cvae_layers: 1, encoder_layers: 1, dropout: 0.1}
dataset: {path: PATH, chunk_size: 5, eval_fraction: 0.25}
freeze: [cvae_encoder]
lora_module: [encoder, decoder]
"""
LLAMA = """
task_name: TASK
freeze: [layers.0]
lora_task_type: CAUSAL_LM
lora_module: [q_proj, v_proj]
"""
TASK = """
dataset: {name: outside.tokens}
model:
  name: auto
  task: causal_lm
  config: {model_type: llama, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
"""
BOTH = """
lora_enable: true
lora_r: 4
lora_lr: 1.0e-2
use_quantization: true
bits: 4
using_ema: true
ema: {decay: 0.5, warmup: false}
early_stopping: {patience: 5}
checkpointing: {monitor: [val_loss], every_n_epochs: 0, save_top_k: 1}
"""


@pytest.fixture(params=["act", "llama"])
def command(request, in_root, tmp_path):
    """Flags of a small adapted run."""
    if request.param == "act":
        write_act_folder(tmp_path / "episodes", (20,) * 4)
        text = ACT.replace("PATH", str(tmp_path / "episodes"))
    else:
        (tmp_path / "task.yaml").write_text(TASK)
        text = LLAMA.replace("TASK", str(tmp_path / "task.yaml"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text + BOTH)

    def build(out, **flags):
        given = {"max_steps": 6, "save_steps": 2, "eval_steps": 2, "logging_steps": 2, "report_to": "none", **flags}
        given |= {"training_config": recipe, "output_dir": tmp_path / out, "learning_rate": 1e-3}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    return build


def outputs(model, batch):
    with torch.no_grad():
        out = model.eval()(**batch)
    return out["logits"] if "logits" in out else out["actions"]


@pytest.mark.slow
def test_an_adapted_run_resumes_evaluates_and_merges(command, tmp_path):
    from models.adapt import load_adapted

    trainer = train.main(command("whole"))
    whole = tmp_path / "whole"
    # resumed from the middle: the same files, bit for bit
    shutil.copytree(whole, tmp_path / "parts", symlinks=True)
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "parts" / name, ignore_errors=True)
    resumed = train.main(command("parts", resume_from_checkpoint="auto"))
    assert resumed.state.global_step == 6
    for name in ("adapter_model.safetensors", "checkpoint-6/ema.safetensors"):
        assert same(whole / name, tmp_path / "parts" / name), name
    assert metric_differences(whole, tmp_path / "parts") == []
    # the saved weights are the averaged ones
    stored, adapter = tensors(whole / "checkpoint-6/ema.safetensors"), tensors(whole / "adapter_model.safetensors")
    key = next(key for key in adapter if "lora_B" in key)
    inner = key.replace(".weight", ".default.weight")
    assert torch.equal(stored[f"shadow.{inner}"], adapter[key])
    assert not torch.equal(stored[f"trained.{inner}"], adapter[key])
    report = json.loads((whole / "adaptation.json").read_text())
    assert report and os.path.samefile(whole / "best-checkpoint", whole / "best-eval_loss")
    # merged: plain weights with the same outputs
    export.main(["--checkpoint", str(whole), "--merge", "--out", str(tmp_path / "merged")])
    batch = next(iter(trainer.get_eval_dataloader()))
    batch = {name: value for name, value in batch.items() if name not in ("labels", "actions", "is_pad")}
    module = read_saved(whole / "run.yaml").model.module
    adapted, merged = load_adapted(whole, module), module.load(tmp_path / "merged")
    assert torch.allclose(outputs(adapted, batch), outputs(merged, batch), atol=1e-4)
    with trainer.averaged():
        assert torch.allclose(outputs(trainer.model, batch), outputs(adapted, batch), atol=1e-5)
