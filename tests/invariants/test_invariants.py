"""What holds for every workload: the numbers do not depend on how a batch was cut, on kills, on the way of scoring.

Each file of `recipes/` is one workload; a new one joins the suite by adding its file.
"""

import csv
import importlib
import json
import pkgutil

import h5py
import pytest
import recipes
import torch
from predictions import actions
from safetensors.torch import load_file
from several_processes import launched

import eval as evaluation
import predict
import train
from loader.command_line.entry import command_line
from loader.schema.components import shipped
from models import export

NAMES = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
COMMON = """max_steps=5 logging_steps=1 learning_rate=0.01 lr_scheduler_type=constant eval_strategy=steps eval_steps=5
    save_strategy=no report_to=none weight_decay=0 warmup_steps=0 seed=3"""
TIMES = ("runtime", "second", "step_ms", "waiting", "peak", "eta", "mfu", "flops")


class Workload:
    """Runs of one recipe, in this process, under one folder."""

    def __init__(self, name, folder):
        self.recipe, self.folder = importlib.import_module(f"recipes.{name}"), folder
        self.words = self.recipe.words(folder)

    def arguments(self, out, batch=8, steps=1, **settings):
        settings |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        settings |= {"output_dir": self.folder / out, "cache_dir": self.folder / "cache"}
        return [
            *self.words,
            "--set",
            *COMMON.split(),
            *(f"{key.replace('__', '.')}={settings[key]}" for key in settings),
        ]

    def train(self, out, batch=8, steps=1, **settings):
        train.main(self.arguments(out, batch, steps, **settings))
        return self.log(out)

    def log(self, out):
        """The lines of metrics.jsonl without times."""
        lines = (self.folder / out / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not any(word in key for word in TIMES)}
            for line in lines
        ]

    def weights(self, out):
        (file,) = (self.folder / out).glob("*model.safetensors")
        return load_file(file)


@pytest.fixture(params=NAMES)
def workload(request, tmp_path, monkeypatch):
    made = Workload(request.param, tmp_path)
    getattr(made.recipe, "without_noise", lambda _: None)(monkeypatch)
    return made


def losses(log):
    """Step -> everything that is a mean over samples or items, and the gradient's norm."""
    kept = [{key: line[key] for key in line if "loss" in key or key == "grad_norm"} for line in log if "loss" in line]
    assert len(kept) == 5 and all("grad_norm" in line for line in kept)
    return kept


def scores(log):
    (line,) = (line for line in log if "eval_loss" in line and line["step"] == 5 and "loss" not in line)
    return {key: value for key, value in line.items() if key.startswith("eval_")}


def check_same_numbers(log, other):
    for step, (line, same) in enumerate(zip(losses(log), losses(other), strict=True)):
        assert line == pytest.approx(same, rel=1e-5 if step == 0 else 1e-4, abs=1e-7), step
    assert scores(log) == pytest.approx(scores(other), rel=1e-4)


def test_every_component_has_a_recipe():
    found = [importlib.import_module(f"recipes.{name}") for name in NAMES]
    assert {recipe.MODEL for recipe in found} >= set(shipped("model"))
    assert {recipe.DATA for recipe in found} >= set(shipped("dataset"))


@pytest.mark.slow
def test_the_cut_of_a_batch_changes_nothing(workload):
    whole = workload.train("whole")
    for batch, steps in ((4, 2), (1, 8)):
        check_same_numbers(whole, workload.train(f"cut-{batch}", batch, steps))


@pytest.mark.slow
def test_the_size_of_evaluation_batches_changes_nothing(workload):
    """In training and in eval.py."""
    logs = {size: scores(workload.train(f"eval-{size}", per_device_eval_batch_size=size)) for size in (3, 64)}
    assert logs[3] == pytest.approx(logs[64], rel=1e-6)
    for size in (1, 5):
        again = evaluation.main(["--checkpoint", str(workload.folder / "eval-64"), "--batch_size", str(size)])
        same = {key.removeprefix("eval_"): value for key, value in logs[64].items()}
        assert {key: again.get(key) for key in same} == pytest.approx(same, rel=1e-6)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(workload):
    whole = workload.train("whole", 4, 2)
    workload.train("resumed", 4, 2, max_steps=3, save_strategy="steps", save_steps=3)
    again = workload.train("resumed", 4, 2, resume_from_checkpoint="auto", save_strategy="steps", save_steps=3)
    assert losses(again) == losses(whole) and scores(again) == scores(whole)
    assert all(
        torch.equal(value, workload.weights("resumed")[name]) for name, value in workload.weights("whole").items()
    )


@pytest.mark.slow
def test_averaged_weights_are_those_of_the_steps(workload):
    """A decay of 0 is the last step's weights; one of 0.5 lies between the first and the last."""
    workload.train("plain")
    workload.train("last", using_ema="true", ema__decay=0, ema__warmup="false")
    plain, last = workload.weights("plain"), workload.weights("last")
    assert all(torch.equal(plain[name], last[name]) for name in plain)
    workload.train("half", using_ema="true", ema__decay=0.5, ema__warmup="false")
    half = workload.weights("half")
    assert any(not torch.equal(plain[name], half[name]) for name in plain)


@pytest.mark.slow
def test_an_adapter_scores_the_same_after_saving_and_merging(workload, capsys):
    """In training, from the checkpoint, and merged into plain weights; without an adapter export is a copy."""
    adapted = {"lora_enable": "true", "lora_r": 2, "lora_module": getattr(workload.recipe, "LORA", "all-linear")}
    for out, settings, words in (("adapted", adapted, ["--merge"]), ("plain", {}, [])):
        log = scores(workload.train(out, **settings))
        expected = {key.removeprefix("eval_"): value for key, value in log.items()}
        merged = workload.folder / f"{out}-exported"
        export.main(["--checkpoint", str(workload.folder / out), *words, "--out", str(merged)])
        for folder in (workload.folder / out, merged):
            again = evaluation.main(["--checkpoint", str(folder)])
            assert {key: again.get(key) for key in expected} == pytest.approx(expected, rel=1e-5)
    assert not list(merged.glob("adapter_*"))


@pytest.mark.slow
def test_a_prediction_does_not_depend_on_its_batch(workload, tmp_path):
    """And is the same from the last checkpoint, the final model and its export."""
    workload.train("out", save_strategy="steps", save_steps=5)
    out, results = workload.folder / "out", []
    if not hasattr(workload.recipe, "inputs"):
        with pytest.raises(SystemExit) as left:
            command_line(predict.main, ["--checkpoint", str(out), "--input", "-"])
        assert left.value.code == 2
        return
    inputs, output = workload.recipe.inputs(workload.folder), tmp_path / getattr(workload.recipe, "OUTPUT", "predicted")
    export.main(["--checkpoint", str(out), "--out", str(workload.folder / "exported")])
    for folder, size in ((out, 1), (out, 3), (out / "checkpoint-5", 64), (workload.folder / "exported", 64)):
        words = ["--checkpoint", folder, "--input", inputs, "--output", output, "--batch_size", size]
        predict.main([*map(str, words)])
        results.append(contents(output))
    assert len(results[0]) > 1
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for key, value in result.items():
            assert value == (results[0][key] if isinstance(value, dict) else pytest.approx(results[0][key], abs=1e-5))


def contents(file):
    """What predict.py wrote: lines of JSON, the numbers of a table, or the arrays of an HDF5 file, by number or key."""
    if not h5py.is_hdf5(file):
        lines = file.read_text(encoding="utf-8").splitlines()
        if not lines[0].startswith("{"):
            return {row: [*map(number, values)] for row, (_, *values) in enumerate(csv.reader(lines[1:]))}
        return dict(enumerate(json.loads(line) for line in lines))
    return actions(file)


def number(word):
    """A probability or a decision; a class by its name's letters."""
    return float(word) if word[0].isdigit() else float(sum(map(ord, word)))


@pytest.mark.slow
def test_two_processes_are_one(workload):
    for number, more in enumerate(getattr(workload.recipe, "SEVERAL", ({},))):
        whole = workload.train(f"whole-{number}", **more)
        done = launched("ddp.yaml", workload.arguments(f"two-{number}", 4, **more))
        assert done.returncode == 0, done.stderr[-3000:]
        check_same_numbers(whole, workload.log(f"two-{number}"))
