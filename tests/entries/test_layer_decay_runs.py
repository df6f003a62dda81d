"""`layer_decay` through train.py: updates, schedules, resuming, adapters, and where it is refused."""

import json
import shutil

import pytest
import torch
from recipes import images

import train
from loader.command_line.entry import command_line

VIT = (
    "{name: auto, task: image_classification, config: {model_type: vit, hidden_size: 8, num_hidden_layers: 2, "
    "num_attention_heads: 2, intermediate_size: 16, patch_size: 8}}"
)
PLAIN = """optim=sgd max_steps=2 learning_rate=0.1 lr_scheduler_type=constant warmup_steps=0 weight_decay=0
    max_grad_norm=0 report_to=none do_eval=false save_strategy=steps save_steps=1 logging_steps=1 accelerator=cpu"""
DEPTHS = {"classifier.weight": 0, "vit.layernorm.bias": 0, "vit.layers.1.mlp.fc1.weight": 1,
          "vit.layers.0.mlp.fc2.bias": 2, "vit.embeddings.cls_token": 3}  # fmt: skip


@pytest.fixture
def run(tmp_path, in_root):
    words = images.words(tmp_path, model=VIT)

    def start(*settings, out="out"):
        places = (f"output_dir={tmp_path / out}", f"cache_dir={tmp_path / 'c'}")
        return train.main([*words, "--set", *PLAIN.split(), *places, *settings])

    return start


def rates_of(trainer):
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}


@pytest.mark.slow
@pytest.mark.keys("layer_decay")
def test_an_update_is_the_gradient_times_the_decayed_rate(run, tmp_path, capsys):
    """Of the first step of plain SGD, in which both runs have the same weights and gradients."""
    runs = (("learning_rate=0", "before"), ("layer_decay=1", "plain"), ("layer_decay=0.5", "out"))
    before, plain, decayed = (run("max_steps=1", word, out=out).model.state_dict() for word, out in runs)
    for name, depth in DEPTHS.items():
        full, update = (after[name] - before[name] for after in (plain, decayed))
        assert full.abs().max() > 1e-5
        torch.testing.assert_close(update, full * 0.5**depth, rtol=1e-3, atol=1e-6)
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {line["learning_rate"] for line in logged if "learning_rate" in line} == {0.1}
    rates = json.loads((tmp_path / "out" / "adaptation.json").read_text())["total"]["learning_rate"]
    assert rates == pytest.approx([0.1 * 0.5**depth for depth in (3, 2, 1, 0)])
    assert "0.0125 … 0.1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_schedule_scales_all_layers_alike(run):
    trainer = run("layer_decay=0.5", "scheduler={name: OneCycleLR, interval: step}", "max_steps=4")
    rates = rates_of(trainer)
    for name, depth in DEPTHS.items():
        assert rates[name] == pytest.approx(rates["classifier.weight"] * 0.5**depth)


@pytest.mark.slow
@pytest.mark.keys("layer_decay")
def test_a_resumed_run_is_the_uninterrupted_one_and_another_decay_is_asked_about(run, tmp_path, capsys):
    adamw = ("optim=adamw_torch", "resume_from_checkpoint=auto", "resume_schedule=keep")
    whole = run("layer_decay=0.5", "max_steps=4", *adamw)
    for name in ("checkpoint-3", "checkpoint-4"):
        shutil.rmtree(tmp_path / "out" / name, ignore_errors=True)
    again = run("layer_decay=0.5", "max_steps=4", *adamw)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    further = (*adamw, "max_steps=6")
    for other, allow in (("0.25", "refuse"), ("1.0", "allow")):
        with pytest.raises(SystemExit) as left:
            command_line(run, f"layer_decay={other}", f"resume_changed={allow}", *further)
        assert left.value.code == 2 and f"`layer_decay: {other}`" in capsys.readouterr().err
    changed = run("layer_decay=0.25", "resume_changed=allow", *further)
    rates = rates_of(changed)
    assert rates["classifier.weight"] == pytest.approx(0.1)
    assert rates["vit.layers.0.mlp.fc2.bias"] == pytest.approx(0.1 * 0.25**2)
    slower = run("layer_decay=0.25", "resume_changed=allow", "resume_lr=0.01", *adamw, "max_steps=8")
    assert rates_of(slower)["vit.layers.0.mlp.fc2.bias"] == pytest.approx(0.01 * 0.25**2)


@pytest.mark.slow
def test_an_adapter_decays_with_its_layers(run):
    lora = ("lora_enable=true", "lora_r=2", "lora_module=[fc1]", "lora_lr=0.3", "max_steps=1")
    rates = rates_of(run("layer_decay=0.5", *lora))
    adapters = {name: rate for name, rate in rates.items() if ".lora_" in name}
    assert len(adapters) == 4
    for name, rate in adapters.items():
        assert rate == pytest.approx(0.3 * 0.5 ** (1 if ".layers.1." in name else 2)), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [("layer_decay=0",), ("layer_decay=1.5",), ("layer_decay=0.5", "optim=adafactor", "optimizer.relative_step=true")],
)  # fmt: skip
def test_what_layer_decay_cannot_be(run, tmp_path, capsys, settings):
    with pytest.raises(SystemExit) as left:
        command_line(run, *settings)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert left.value.code == 2 and not (tmp_path / "out").exists()
    assert "layer_decay" in "".join(lines)
