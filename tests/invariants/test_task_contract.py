"""Every part of the task contract on a synthetic kind of data, against computations by hand (tests/kinds)."""

import json

import numpy as np
import pytest
import torch
from kinds import instances
from kinds.classifier import load
from recipes import gpt_windows
from recipes.instances import words
from torch.nn import functional as F

import eval as evaluation
import train
from data.samplers import LengthGroupedSampler, WeightedSampler
from loader.command_line.entry import command_line

COMMON = """max_steps=6 logging_steps=1 learning_rate=0.05 lr_scheduler_type=constant eval_strategy=steps eval_steps=6
    save_strategy=no report_to=none seed=2 warmup_steps=0 per_device_train_batch_size=4 per_device_eval_batch_size=4"""


def run(folder, *settings, out="out", recipe=words):
    trainer = train.main([*recipe(folder), "--set", *COMMON.split(), f"output_dir={folder / out}", *settings])
    return trainer, [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


def losses(log):
    return [line["loss"] for line in log if "loss" in line]


def scores_by_hand(model, samples):
    """Loss, its terms, accuracy and macro F1 over all instances, in one batch."""
    batch = instances.collate(samples)
    with torch.no_grad():
        outputs = model(**batch)
    classes, chosen = torch.cat(batch["truth"]["classes"]), outputs["logits"].argmax(-1)
    f1 = []
    for kind in range(3):
        hits = ((chosen == kind) & (classes == kind)).sum().item()
        f1.append(2 * hits / max(1, ((chosen == kind).sum() + (classes == kind).sum()).item()))
    return {
        "loss": outputs["loss"].item(),
        "loss_class": outputs["losses"]["class"].item(),
        "loss_size": outputs["losses"]["size"].item(),
        "accuracy": (chosen == classes).float().mean().item(),
        "macro_f1": np.mean(f1),
    }


@pytest.mark.slow
@pytest.mark.keys("evaluate_test")
def test_scores_are_those_of_the_whole_set(tmp_path, in_root):
    """The validation set in training, the test set at the end, and both by eval.py, at uneven batch sizes."""
    _, log = run(tmp_path, "evaluate_test=true")
    model = load(tmp_path / "out").eval()
    for split, prefix, samples in (
        ("validation", "eval", instances.make(11, 1)),
        ("test", "test", instances.make(9, 2)),
    ):
        by_hand = scores_by_hand(model, samples.samples)
        (line,) = (line for line in log if f"{prefix}_loss" in line)
        assert {name: line[f"{prefix}_{name}"] for name in by_hand} == pytest.approx(by_hand, rel=1e-5)
        for size in ("1", "4", "64"):
            again = evaluation.main(["--checkpoint", str(tmp_path / "out"), "--split", split, "--batch_size", size])
            assert {name: again[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_data_without_a_test_set_is_told(tmp_path, in_root, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(run, tmp_path, "evaluate_test=true", recipe=gpt_windows.words)
    assert ended.value.code == 2 and "evaluate_test" in capsys.readouterr().err
    run(tmp_path, recipe=gpt_windows.words)
    with pytest.raises(SystemExit) as ended:
        command_line(evaluation.main, ["--checkpoint", str(tmp_path / "out"), "--split", "test"])
    assert ended.value.code == 2


@pytest.mark.slow
def test_the_transform_follows_from_seed_and_step(tmp_path, in_root):
    """It changes what is trained on, the same way in each run and after a resume, and no evaluation."""
    noise = "dataset.noise=0.5"
    _, plain = run(tmp_path)
    _, whole = run(tmp_path, noise, out="whole")
    assert losses(whole) != losses(plain)
    assert losses(run(tmp_path, noise, "seed=5", out="other")[1]) != losses(whole)
    saves = ("save_strategy=steps", "save_steps=3")
    run(tmp_path, noise, *saves, "max_steps=3", out="resumed")
    _, resumed = run(tmp_path, noise, *saves, "resume_from_checkpoint=auto", out="resumed")
    assert losses(resumed) == losses(whole)
    still = scores_by_hand(load(tmp_path / "whole").eval(), instances.make(11, 1).samples)
    (line,) = (line for line in whole if "eval_loss" in line)
    assert line["eval_loss"] == pytest.approx(still["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["weighted", "grouped"])
def test_a_resume_draws_the_same_samples(tmp_path, in_root, sampler):
    settings = (
        f"dataset.sampler={sampler}",
        "dataset.samples=20",
        "save_strategy=steps",
        "save_steps=3",
        "max_steps=8",
    )
    _, whole = run(tmp_path, *settings, out="whole")
    run(tmp_path, *settings, "max_steps=3", out="resumed")
    _, resumed = run(tmp_path, *settings, "resume_from_checkpoint=auto", out="resumed")
    assert losses(resumed) == losses(whole)


@pytest.mark.slow
def test_a_damaged_sample_is_named(tmp_path, in_root, capsys):
    trainer, log = run(tmp_path, "dataset.damaged=7", "max_steps=10", "dataset.sampler=grouped")
    assert "7" in capsys.readouterr().err.split("skipped", 1)[1]
    assert sum(line.get("skipped_steps", 0) for line in log) == 1
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


@pytest.mark.slow
def test_the_batch_size_search_takes_nested_batches(tmp_path, in_root):
    trainer, _ = run(tmp_path, "tune_batch_size=true", "dataset.noise=0.1")
    assert trainer.args.per_device_train_batch_size == 32  # the largest power of two within 40 samples


@pytest.mark.slow
def test_units_are_counted(tmp_path, in_root):
    _, log = run(tmp_path)
    assert [line["instances"] for line in log if "loss" in line] == [12 * step for step in range(1, 7)]


# ---- losses ----


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def focal(logits, labels):
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return -((1 - p) ** 3 * p.log()).mean()


@pytest.mark.slow
@pytest.mark.keys("loss.name", "loss(cross_entropy).label_smoothing", "loss(focal).gamma")
@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [(("loss.name=cross_entropy", "loss.label_smoothing=0.2"), smoothed), (("loss=focal", "loss.gamma=3"), focal)],
)
def test_a_named_loss_replaces_the_networks_own(tmp_path, in_root, loss, by_hand):
    """In training, evaluation and eval.py; its cut into micro-batches does not matter either."""
    trainer, log = run(tmp_path, *loss, recipe=gpt_windows.words)
    rows = trainer.eval_dataset.__getitems__(list(range(len(trainer.eval_dataset))))
    with torch.no_grad():
        logits = trainer.model.eval()(rows["input_ids"])["logits"]
    expected = by_hand(logits.flatten(0, 1), rows["shift_labels"].flatten()).item()
    (line,) = (line for line in log if "eval_loss" in line)
    assert line["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert evaluation.main(["--checkpoint", str(tmp_path / "out")])["loss"] == pytest.approx(expected, rel=1e-5)
    cut = ("per_device_train_batch_size=1", "gradient_accumulation_steps=4")
    _, same = run(tmp_path, *loss, *cut, out="cut", recipe=gpt_windows.words)
    assert losses(same) == pytest.approx(losses(log), rel=1e-4)


def test_a_loss_without_logits_is_refused(tmp_path, in_root):
    from models.losses.classification import ClassLoss

    with pytest.raises(ValueError, match="logits"):
        ClassLoss()({"loss": torch.ones(())}, {"labels": torch.ones(2, dtype=torch.long)})


# ---- samplers ----


def test_weighted_sampling_reaches_its_shares():
    sampler = WeightedSampler([1, 0, 3], seed=0, samples=4000)
    counts = np.bincount(list(sampler), minlength=3)
    assert counts[1] == 0 and abs(counts[0] - 1000) < 3 * np.sqrt(4000 * 0.25 * 0.75)
    with pytest.raises(ValueError, match="weights"):
        WeightedSampler([0.0, 0.0], seed=0)


def test_grouped_sampling_takes_each_sample_once_and_needs_little_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    sampler = LengthGroupedSampler(lengths, step_size=8, seed=0)
    order = np.array(list(sampler))
    assert sorted(order) == list(range(1003))

    def padding(order):
        steps = [lengths[order[first : first + 8]] for first in range(0, 1003, 8)]
        return sum(len(step) * step.max() - step.sum() for step in steps)

    assert padding(order) < 0.2 * padding(np.arange(1003))
    sampler.set_epoch(1)
    again = list(sampler)
    assert again != order.tolist()
    sampler.set_position(16)
    assert list(sampler) == again[16:] and list(sampler) == again
