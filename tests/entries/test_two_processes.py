"""Two processes on a CPU: one schedule, one decision, one set of files; one that is told to stop stops both."""

import json
import shutil

import pytest
import torch
from demonstration_files import write_act_episode
from safetensors.torch import load_file
from several_processes import CALLBACK, launched
from text_sets import SMALL, metrics, write_set

import train

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
"""


def two(*words, code=0, **environment):
    """What two processes printed."""
    done = launched("ddp.yaml", words, **environment)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_schedule_averages_and_best_checkpoints_with_two_processes(tmp_path, in_root):
    (tmp_path / "episodes").mkdir()
    for index in range(4):
        write_act_episode(tmp_path / "episodes" / f"episode_{index}.hdf5", steps=20, seed=index)
    data = f"dataset: {{path: {tmp_path / 'episodes'}, chunk_size: 5, eval_fraction: 0.25}}\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE + data)
    (tmp_path / "wrote").mkdir()

    def launch(out, *more, **how):
        recipe = str(tmp_path / "recipe.yaml")
        return two("--training_config", recipe, "--output_dir", str(tmp_path / out), *more, **how)

    shown = launch("whole", WROTE=tmp_path / "wrote")
    whole = tmp_path / "whole"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.005, 0.005])  # by hand: warm-up, then halved every 2 steps
    for line in ("learning rate schedule", "model: act", "final model in"):
        assert shown.count(line) == 1  # one process speaks for all
    first, second = (json.loads((tmp_path / "wrote" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [name for name in first if name.endswith("metrics.jsonl")] and not [n for n in second if str(whole) in n]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 6]
    kept = {path.name for path in whole.glob("checkpoint-*")}
    best = sorted((line["eval_loss"], line["step"]) for line in lines if "eval_loss" in line)[:2]
    assert kept == {f"checkpoint-{step}" for _, step in best} | {"checkpoint-6"}
    averaged = load_file(whole / "model.safetensors")
    stored = load_file(whole / "checkpoint-6/ema.safetensors")
    assert all(torch.equal(stored[f"shadow.{name}"], averaged[name]) for name in averaged if f"shadow.{name}" in stored)

    # Only the second process is told to stop; both do, at the same step, and the same line goes on from there.
    told = launch("parts", code=1, TROUBLE="term:3:1")
    assert told.count("preempted by") == 1
    steps = {path.name for path in (tmp_path / "parts").glob("checkpoint-*") if not path.is_symlink()}
    assert steps & {"checkpoint-3", "checkpoint-4"} and "checkpoint-6" not in steps
    launch("parts", "--resume_from_checkpoint", "auto")
    again = load_file(tmp_path / "parts" / "model.safetensors")
    assert all(torch.equal(again[name], averaged[name]) for name in averaged)
    for key in ("loss", "eval_loss", "learning_rate"):
        assert metrics(tmp_path / "parts", key) == metrics(whole, key)


@pytest.mark.slow
def test_text_on_two_processes(tmp_path, in_root, monkeypatch):
    """Each takes its half of what one process would take in batches twice the size; resumed, they end the same."""
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    for seed, name in enumerate("ab"):
        write_set(tmp_path / "home" / "datasets" / name, seed)
    small = SMALL.replace("--max_sample_tokens 4", "--grad_clip 0.5").split()

    def launch(out, words, processes=2):
        words = ["--out_dir", str(tmp_path / out), *words]
        two(*words) if processes > 1 else train.main(words)
        return load_file(tmp_path / out / "model.safetensors")

    half = launch("two", ["--dataset", "a", *small])
    doubled = [{"4": "8"}.get(word, word) if small[at - 1] == "--batch_size" else word for at, word in enumerate(small)]
    one = launch("one", ["--dataset", "a", *doubled], processes=1)
    assert all(torch.allclose(half[name], one[name], atol=1e-5) for name in one)
    separate = ["--training_mode", "multidataset", "--dataset_list", "a", "b", "--multidataset_wte", *small]
    whole = launch("separate", separate)
    shutil.rmtree(tmp_path / "separate" / "checkpoint-6")
    (tmp_path / "separate" / "model.safetensors").unlink()
    resumed = launch("separate", ["--init_from", "resume"])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
