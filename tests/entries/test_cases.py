"""Small inputs that public bug reports describe (shared/cases), with values computed by plain PyTorch."""

import json

import pytest
import torch

import train

pytestmark = pytest.mark.slow


def run(config, out, *settings):
    settings = [*settings, "report_to=none", f"output_dir={out}", f"cache_dir={out.parent / 'cache'}"]
    trainer = train.main(["--training_config", str(config), "--set", *settings])
    return trainer, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def cut(batch, steps):
    return f"per_device_train_batch_size={batch}", f"gradient_accumulation_steps={steps}"


def mean_over_tokens(model, dataset):
    """Each row alone, no trainer: the sum of the tokens' cross entropies over their number."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(len(dataset)):
            batch = dataset.__getitems__([row])
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"])["logits"]
            labels = batch["shift_labels"].flatten()
            total += torch.nn.functional.cross_entropy(logits[0], labels, reduction="sum").item()
            count += (labels != -100).sum().item()
    return total / count


@pytest.mark.parametrize("name", ["records_auto", "records_gpt"])
def test_the_evaluation_loss_is_a_mean_over_tokens(tmp_path, in_root, shared, name):
    config = shared / "cases" / "configs" / f"{name}.yaml"
    for size in (1, 2, 3, 7):
        trainer, log = run(config, tmp_path / str(size), f"per_device_eval_batch_size={size}")
        (line,) = (line for line in log if "eval_loss" in line)
        by_hand = mean_over_tokens(trainer.model.eval(), trainer.eval_dataset)
        assert line["eval_loss"] == pytest.approx(by_hand, rel=1e-5)


def test_the_first_step_of_records_does_not_depend_on_the_cut(tmp_path, in_root, shared):
    config = shared / "cases" / "configs" / "records_gpt.yaml"
    for batch, steps in ((4, 1), (1, 4), (2, 2)):
        _, log = run(config, tmp_path / f"{batch}x{steps}", *cut(batch, steps), "eval_strategy=no", "warmup_steps=0")
        assert log[0]["loss"] == pytest.approx(5.700682, rel=1e-5)
        assert log[0]["grad_norm"] == pytest.approx(1.158625, rel=1e-4)


def test_padded_actions_do_not_count(tmp_path, in_root, shared, monkeypatch):
    """ACT at a chunk of 40 on episodes that end before: most chunks are padded."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # else each cut draws other latent variables
    config = shared / "cases" / "configs" / "act_best.yaml"
    common = ("dataset.chunk_size=40", "max_steps=1", "logging_steps=1", "eval_steps=1", "save_strategy=no")
    plain = ("load_best_model_at_end=false", "metric_for_best_model=null")
    first = None
    for (batch, steps), size in zip(((8, 1), (2, 4), (1, 8), (4, 2)), (1, 4, 8, 64), strict=True):
        out = tmp_path / str(size)
        _, log = run(config, out, *common, *plain, *cut(batch, steps), f"per_device_eval_batch_size={size}")
        numbers = [log[0][key] for key in ("loss", "loss_action", "loss_kl", "grad_norm")]
        numbers += [line["eval_loss"] for line in log if "eval_loss" in line]
        first = first or numbers
        assert len(numbers) == 5 and numbers == pytest.approx(first, rel=1e-5)


def test_the_best_checkpoint_of_a_named_loss_is_its_lowest(tmp_path, in_root, shared):
    run(shared / "cases" / "configs" / "act_best.yaml", tmp_path / "out")
    state = json.loads((tmp_path / "out" / "checkpoint-12" / "trainer_state.json").read_text())
    values = {line["step"]: line["eval_loss_action"] for line in state["log_history"] if "eval_loss_action" in line}
    assert state["best_global_step"] == min(values, key=values.get)
