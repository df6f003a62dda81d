"""Two processes on a CPU: one schedule, one decision, one set of files; a signal to one process stops both."""

import json
import shutil

import pytest
import torch
from demonstration_files import write_act_folder
from run_results import metrics, same, tensors
from several_processes import CALLBACK, launched
from text_sets import SMALL, write_set

from storage import manifest

pytestmark = pytest.mark.slow

RECIPE = f"""
callbacks: [{CALLBACK}]
model_config: act
model: {{hidden_dim: 16, num_heads: 2, feedforward_dim: 16, cvae_layers: 1, encoder_layers: 1}}
using_ema: true
ema: {{decay: 0.5}}
gradient_accumulation_steps: 2
scheduler: {{name: StepLR, step_size: 2, gamma: 0.5, interval: step}}
early_stopping: {{monitor: val/loss, patience: 3}}
checkpointing: {{monitor: [val_loss], save_top_k: 2, every_n_epochs: 0}}
max_steps: 6
eval_steps: 2
logging_steps: 1
warmup_steps: 2
learning_rate: 0.01
per_device_train_batch_size: 4
report_to: none
report: false
"""


def two(*words, code=0, **environment):
    """What two processes printed."""
    done = launched("ddp.yaml", words, **environment)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


def test_schedule_averages_and_best_checkpoints_with_two_processes(tmp_path, in_root):
    write_act_folder(tmp_path / "episodes", (20,) * 4)
    data = f"dataset: {{path: {tmp_path / 'episodes'}, chunk_size: 5, eval_fraction: 0.25}}\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE + data)
    (tmp_path / "wrote").mkdir()

    def launch(out, *more, **how):
        recipe = str(tmp_path / "recipe.yaml")
        return two("--training_config", recipe, "--output_dir", str(tmp_path / out), *more, **how)

    # accelerate launch sets ACCELERATE_USE_CPU=false without a GPU
    shown = launch("whole", WROTE=tmp_path / "wrote", ACCELERATE_USE_CPU="false")
    whole = tmp_path / "whole"
    rates, losses = list(metrics(whole, "learning_rate").values()), metrics(whole, "eval_loss")
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.005, 0.005])  # by hand: warm-up, then halved every 2 steps
    for line in ("learning rate schedule", "final model in", "ACCELERATE_USE_CPU=true is set"):
        assert shown.count(line) == 1  # only one process prints
    assert manifest.read(whole)["world_size"] == 2
    first, second = (json.loads((tmp_path / "wrote" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [name for name in first if name.endswith("metrics.jsonl")] and not [n for n in second if str(whole) in n]
    kept = {path.name for path in whole.glob("checkpoint-*")}
    best = sorted(losses, key=losses.get)[:2]
    assert list(losses) == [2, 4, 6] and kept == {f"checkpoint-{step}" for step in (*best, 6)}
    averaged, stored = tensors(whole), tensors(whole / "checkpoint-6/ema.safetensors")
    assert all(torch.equal(stored[f"shadow.{name}"], averaged[name]) for name in averaged if f"shadow.{name}" in stored)

    # Only the second process gets a signal; both stop at the same step, and the same command resumes.
    assert launch("parts", code=1, TROUBLE="term:3:1").count("preempted by") == 1
    steps = {path.name for path in (tmp_path / "parts").glob("checkpoint-*") if not path.is_symlink()}
    assert steps & {"checkpoint-3", "checkpoint-4"} and "checkpoint-6" not in steps
    launch("parts", "--resume_from_checkpoint", "auto")
    assert same(tmp_path / "parts", whole)
    for key in ("loss", "eval_loss", "learning_rate"):
        assert metrics(tmp_path / "parts", key) == metrics(whole, key)


def test_a_mixture_of_texts_on_two_processes_resumes(tmp_path, in_root, monkeypatch):
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    for seed, name in enumerate("ab"):
        write_set(tmp_path / "home" / "datasets" / name, seed)
    small = SMALL.replace("--max_sample_tokens 4", "--grad_clip 0.5").split()

    def launch(*words):
        two("--out_dir", str(tmp_path / "out"), *words)
        return tensors(tmp_path / "out")

    whole = launch("--training_mode", "multidataset", "--dataset_list", "a", "b", "--multidataset_wte", *small)
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert same(launch("--init_from", "resume"), whole)
