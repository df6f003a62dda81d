"""The Trainer against bare PyTorch loops, hand calculations and uninterrupted runs."""

import json
import os

import pytest
import torch
import transformers
from tiny_training import EpochSampler, Regression, Samples, make_trainer
from torch.utils.data import DataLoader, default_collate

from trainer.optimization.parameter_groups import parameter_groups


def batches(count, epochs, size=4, seed=42):
    """The batches a run sees, straight from the data."""
    for epoch in range(epochs):
        sampler = EpochSampler(count, seed)
        sampler.set_epoch(epoch)
        yield from DataLoader(Samples(count), batch_size=size, sampler=sampler, collate_fn=default_collate)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_equals_a_bare_loop_bit_for_bit(tmp_path):
    settings = {"num_train_epochs": 2, "weight_decay": 0.1, "warmup_steps": 3, "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, optim="adamw_torch", max_grad_norm=0.5, **settings)
    trainer.train()

    model = Regression()
    groups = parameter_groups(model, 0.05, 0.1)
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.999), eps=1e-8)
    total = 12
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 3 if step < 3 else max(0.0, (total - step) / (total - 3))
    )
    rates = []
    for batch in batches(22, epochs=2):
        model(**batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert_same(weights(trainer.model), weights(model))
    logged = [line["learning_rate"] for line in metrics(tmp_path) if "learning_rate" in line]
    assert logged == pytest.approx(rates[1::2])


@pytest.mark.slow
def test_named_losses_are_the_means_since_the_last_log(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=0.0, max_steps=4, gradient_accumulation_steps=2)
    trainer.train()
    model, cut = Regression(), list(batches(22, epochs=2))
    # 22 samples make 6 batches an epoch, the last of 2 samples: steps of micro-batches 0-1, 2-3, 4-5, then the next
    pairs = zip(cut[::2], cut[1::2], strict=True)
    whole = [{key: torch.cat([first[key], second[key]]) for key in first} for first, second in pairs]
    terms = [model(**step)["losses"] for step in whole]
    for log, steps in zip([line for line in metrics(tmp_path) if "loss" in line], (terms[:2], terms[2:4]), strict=True):
        for name in ("error", "size"):
            assert log[f"loss_{name}"] == pytest.approx(sum(step[name].item() for step in steps) / 2, rel=1e-5)


@pytest.mark.slow
def test_logged_grad_norm_is_that_of_the_step_before_clipping(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, logging_steps=1, max_grad_norm=0.01)
    trainer.train()
    model = Regression()
    model(**next(batches(22, 1)))["loss"].backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert metrics(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_evaluation_weighs_samples_not_batches(tmp_path):
    """7 samples in batches of 4 leave a last batch of 3."""
    trainer = make_trainer(tmp_path)
    measured = trainer.evaluate()
    model, samples = Regression().eval(), Samples(7, seed=1)
    sums = {"loss": 0.0, "error": 0.0, "size": 0.0}
    for rows in (slice(0, 4), slice(4, 7)):
        out = model(samples.x[rows], samples.y[rows])
        size = rows.stop - rows.start
        sums["loss"] += out["loss"].item() * size
        for name, value in out["losses"].items():
            sums[name] += value.item() * size
    assert measured["eval_loss"] == pytest.approx(sums["loss"] / 7, rel=1e-5)
    assert measured["eval_loss_error"] == pytest.approx(sums["error"] / 7, rel=1e-5)
    assert measured["eval_loss_size"] == pytest.approx(sums["size"] / 7, rel=1e-5)


@pytest.mark.slow
def test_evaluation_leaves_the_training_averages_alone(tmp_path):
    trainer = make_trainer(tmp_path / "a", max_steps=6, eval_strategy="steps", eval_steps=1)
    trainer.train()
    plain = make_trainer(tmp_path / "b", max_steps=6)
    plain.train()

    def keep(folder):
        return [(line["step"], line["loss_error"]) for line in metrics(folder) if "loss_error" in line]

    assert keep(tmp_path / "a") == keep(tmp_path / "b")


@pytest.mark.slow
def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    small = make_trainer(tmp_path / "a", count=16, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    large = make_trainer(tmp_path / "b", count=16, per_device_train_batch_size=8)
    for trainer in (small, large):
        trainer.args.num_train_epochs = 2
        trainer.train()
    for name, value in weights(small.model).items():
        torch.testing.assert_close(value, weights(large.model)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "accumulation"), [(4, 1), (6, 1), (3, 2)])
def test_resuming_equals_never_having_stopped(tmp_path, stop, accumulation):
    """Mid-epoch and at its end, with dropout, weights and log alike."""
    settings = {
        "num_train_epochs": 3,
        "gradient_accumulation_steps": accumulation,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": stop,
    }
    whole = make_trainer(tmp_path / "whole", Regression(dropout=0.3), **settings)
    whole.train()
    first = make_trainer(tmp_path / "parts", Regression(dropout=0.3), **settings)
    first.train()  # leaves checkpoint-<stop>; what came after is thrown away below
    second = make_trainer(tmp_path / "parts", Regression(seed=9, dropout=0.3), **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert_same(weights(second.model), weights(whole.model))

    def log(folder):
        kept = ("step", "loss", "loss_error", "learning_rate", "grad_norm")
        return [{name: line[name] for name in kept} for line in metrics(folder) if "loss" in line]

    assert log(tmp_path / "parts") == log(tmp_path / "whole")


@pytest.mark.slow
def test_a_torn_last_line_of_metrics_is_dropped_on_resume(tmp_path):
    settings = {"max_steps": 4, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **settings).train()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "lo')
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_run_folder(tmp_path):
    files = {"run.yaml": "seed: 1  # cli\n", "statistics.json": {"mean": [1.5]}}
    trainer = make_trainer(tmp_path, files=files, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.begin_run_folder()
    assert (tmp_path / "run.yaml").read_text() == "seed: 1  # cli\n"
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert (folder / "model.safetensors").exists()
        assert json.loads((folder / "statistics.json").read_text()) == {"mean": [1.5]}
        assert not list(folder.glob("*.bin")) and not list(folder.glob(".*"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_what_stands_where_a_log_would(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "link to nowhere":
        path.symlink_to(tmp_path / "log")
        make_trainer(tmp_path, csv_dir=tmp_path, max_steps=1).begin_run_folder()
        return
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    trainer = make_trainer(tmp_path, csv_dir=tmp_path, files={"run.yaml": "seed: 1\n"}, max_steps=1)
    with pytest.raises(ValueError, match=f"{name} is not a file"):
        trainer.begin_run_folder()
    assert [each.name for each in tmp_path.iterdir()] == [name]  # nothing was written


@pytest.mark.slow
def test_remove_unused_columns_keeps_what_forward_names(tmp_path):
    seen = []

    class Spy(Regression):
        def forward(self, x, y, **context):
            seen.append(set(context))
            return super().forward(x, y)

    make_trainer(tmp_path, Spy(), max_steps=1, remove_unused_columns=True).train()
    make_trainer(tmp_path, Spy(), max_steps=1).train()
    assert seen == [set(), {"index"}]


@pytest.mark.slow
def test_logs_are_json_even_when_the_loss_is_not_a_number(tmp_path):
    model = Regression()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    make_trainer(tmp_path, model, max_steps=2).train()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and metrics(tmp_path)[0]["loss"] == "nan"  # shown, not filtered into a finite number


@pytest.mark.slow
def test_plain_lines_without_a_terminal(tmp_path, capfd):
    make_trainer(tmp_path, max_steps=4).train()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 2 and lines[0].startswith("step 2/4  loss ") and "eta" in lines[0]
    assert "\r" not in "".join(lines)


@pytest.mark.slow
def test_a_step_walks_no_modules_and_leaves_the_model_as_it_was(tmp_path):
    """`train()` reaches the submodules once after each evaluation, not at every step."""
    calls = []

    class Spy(Regression):
        def train(self, mode=True):
            calls.append(mode)
            return super().train(mode)

    trainer = make_trainer(tmp_path, Spy(), max_steps=6, eval_strategy="steps", eval_steps=3)
    calls.clear()
    trainer.train()
    assert calls.count(True) <= 3 and calls.count(False) == 2  # start, and after the first evaluation
    assert "train" not in vars(trainer.model) and "zero_grad" not in vars(trainer.model)
    trainer.model.eval()
    assert not trainer.model.linear.training


@pytest.mark.slow
def test_precision_and_checkpointing_reach_the_training(tmp_path):
    """bfloat16 on a CPU: the model computes in it, the weights stay float32."""
    seen = []

    class Spy(Regression):
        def forward(self, x, y, **context):
            seen.append(self.linear(x).dtype)
            return super().forward(x, y)

    trainer = make_trainer(tmp_path, Spy(), max_steps=1, bf16=True)
    trainer.train()
    assert seen == [torch.bfloat16] and trainer.model.linear.weight.dtype == torch.float32


@pytest.mark.slow
def test_a_step_looks_for_no_package(tmp_path, monkeypatch):
    """accelerate asks for one at every backward: a search of the import path, once is enough."""
    from accelerate.utils import imports

    asked, original = [], imports._is_package_available
    original = getattr(original, "__wrapped__", original)
    monkeypatch.setattr(imports, "_is_package_available", lambda *names: asked.append(names) or original(*names))
    make_trainer(tmp_path, max_steps=6).train()
    assert len(asked) < 6


class Wrapper(torch.nn.Module):
    """As DDP: the model inside is evaluated without it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **batch):
        return self.module(**batch)


@pytest.mark.slow
def test_a_wrapped_model_trains_again_after_an_evaluation(tmp_path, monkeypatch):
    """Its wrapper stays in training mode meanwhile, and must not say that nothing is to be done."""
    trainer = make_trainer(tmp_path, model=Regression(dropout=0.5), max_steps=4, eval_strategy="steps", eval_steps=2)
    prepare = type(trainer.accelerator).prepare
    seen = []

    def wrapped(accelerator, *objects, **options):
        made = prepare(accelerator, *objects, **options)
        first, *rest = made if isinstance(made, tuple) else (made,)
        if first is trainer.model:
            first = Wrapper(first).train()
        return (first, *rest) if rest else first

    forward = Regression.forward
    monkeypatch.setattr(type(trainer.accelerator), "prepare", wrapped)
    monkeypatch.setattr(
        Regression, "forward", lambda self, **batch: seen.append(self.training) or forward(self, **batch)
    )
    trainer.train()
    assert isinstance(trainer.model_wrapped, Wrapper)
    assert seen == [True, True, False, False, True, True, False, False]


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__.startswith("5.17."), reason="it divides by the steps of all sessions")
def test_the_mean_loss_of_a_resumed_session_is_of_its_own_steps(tmp_path):
    """`train_loss` where the checkpoint lies between two log lines; the line that spans it is whole all the same."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    make_trainer(tmp_path / "each", logging_steps=1, **settings).train()
    losses = [line["loss"] for line in metrics(tmp_path / "each") if "loss" in line]
    whole = make_trainer(tmp_path / "run", logging_steps=4, **settings).train()
    assert whole.training_loss == pytest.approx(sum(losses) / 6)
    resumed = make_trainer(tmp_path / "run", logging_steps=4, **settings).train(str(tmp_path / "run/checkpoint-3"))
    assert resumed.training_loss == pytest.approx(sum(losses[3:]) / 3)
    logged = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert logged[-1]["step"] == 4 and logged[-1]["loss"] == pytest.approx(sum(losses[:4]) / 4)
