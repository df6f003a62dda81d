"""Runs on signals: spec 002's words, what a resume may change, evaluations of checkpoints, forecasts."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from recipes import signals_classes, signals_tokens
from run_results import error_line

import eval as evaluation
import predict
import prepare
import train
from loader.command_line.entry import command_line, entry_flags
from loader.sources.signal_aliases import LOADERS
from models import signal_gpt

pytestmark = pytest.mark.slow  # whole small runs

SPEC = Path(__file__).resolve().parents[3] / "shared/specs/002_e212dec5f6fe77e9.txt"
QUICK = """max_steps=4 logging_steps=1 learning_rate=0.01 lr_scheduler_type=constant report_to=none seed=3
    per_device_train_batch_size=8 per_device_eval_batch_size=8 warmup_steps=0 eval_strategy=no save_strategy=no"""


@pytest.fixture
def run(tmp_path, in_root):
    """Train a small recipe; returns the Trainer. Settings are `key.path=value`."""

    def trained(*settings, out="out", recipe=signals_tokens, **options):
        words = recipe.words(tmp_path, **options)
        places = [f"output_dir={tmp_path / out}", f"cache_dir={tmp_path / 'cache'}"]
        return train.main([*words, "--set", *QUICK.split(), *places, *settings])

    trained.folder = tmp_path
    return trained


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


# ---- resuming ----

SAVES = ("save_strategy=steps", "save_steps=2")
AGAIN = ("resume_from_checkpoint=auto", *SAVES)


def test_a_resumed_run_draws_the_same_corruption(run):
    """With dropout and corrupted tokens the losses are those of the uninterrupted run."""
    noisy = (
        f"{{name: signal_gpt, {signals_tokens.SMALL}, dropout: 0.2, token_corruption: {{p_start: 0.3, p_end: 0.5}}}}"
    )
    run(out="whole", model=noisy)
    run("max_steps=2", *SAVES, model=noisy)
    run(*AGAIN, model=noisy)
    assert losses(run.folder / "out") == losses(run.folder / "whole")


@pytest.mark.keys("resume_token_corruption")
@pytest.mark.parametrize(
    ("given", "kept"),
    [("null", 0.3), ("true", 0.4), ("false", None), ("{p_start: 0.25, p_end: 0.25}", 0.25)],
)
def test_token_corruption_on_resume(run, given, kept):
    """Null keeps the checkpoint's, true takes the configured one; run.yaml and a further resume follow."""
    run("max_steps=2", *SAVES, "model.token_corruption={p_start: 0.3}")
    trainer = run(*AGAIN, "model.token_corruption={p_start: 0.4}", f"resume_token_corruption={given}")
    now = trainer.model.token_corruption
    assert (now and now.p_start) == kept
    written = yaml.safe_load((run.folder / "out/run.yaml").read_text())["model"]["token_corruption"]
    assert (written and written["p_start"]) == kept
    trainer = run(*AGAIN, "max_steps=6", "model.token_corruption=" + json.dumps(written))
    assert (trainer.model.token_corruption and trainer.model.token_corruption.p_start) == kept


@pytest.mark.keys("resume_context")
def test_a_resumed_run_may_read_longer_windows(run, capsys):
    run("max_steps=2", *SAVES)
    longer = [*AGAIN, "dataset.window=20"]
    line = error_line(capsys, run, *longer)
    assert "20" in line and "resume_context" in line
    for wrong, words in (
        ("{input_shape: [2, 19]}", ["19", "20"]),
        ("{max_position_embeddings: 15}", ["15", "20"]),
    ):
        line = error_line(capsys, run, *longer, f"resume_context={wrong}")
        assert all(word in line for word in words)
    trainer = run(*longer, "resume_context={input_shape: [2, 20], rope_theta: 5000}")
    assert trainer.state.global_step == 4 and len(losses(run.folder / "out")) == 4
    config = signal_gpt.load(run.folder / "out").config
    assert (config.context, config.rope_theta) == (20, 5000)
    shorter = ("max_steps=6", "resume_context={input_shape: [2, 10]}", "dataset.window=10")
    assert "20" in error_line(capsys, run, *AGAIN, *shorter)


def test_what_a_resume_cannot_change_in_another_model(run, capsys):
    wave = "{name: wavenet, blocks: 1, layers: 2}"
    run("max_steps=2", *SAVES, model=wave)
    for setting in ("resume_context={rope_theta: 100}", "resume_token_corruption=false"):
        assert setting.partition("=")[0] in error_line(capsys, run, *AGAIN, setting, model=wave)


# ---- evaluations of checkpoints ----


@pytest.mark.keys(
    "eval_runner.enabled",
    "eval_runner.metrics_split",
    "eval_runner.max_batches",
    "eval_runner.example_sampler",
    "eval_runner.generator",
    "eval_runner.analyses",
)
def test_each_checkpoint_is_evaluated(run, capsys):
    """With its own weights: the same scores as eval.py's of that checkpoint; training takes the same course."""
    generator = "generator: {rollouts_per_context: 2, sampling: {strategy: top_k, top_k: 3}}"
    section = f"{{max_batches: 100, example_sampler: {{context_length_steps: 6}}, {generator}}}"
    run(*SAVES, out="plain")
    run(*SAVES, f"eval_runner={section}", "save_total_limit=5")
    assert losses(run.folder / "out") == losses(run.folder / "plain")
    for step in (2, 4):
        summary = json.loads((run.folder / f"out/eval_runner/checkpoint-{step}/summary.json").read_text())
        scores = evaluation.main(["--checkpoint", str(run.folder / f"out/checkpoint-{step}")])
        assert {name: summary[name] for name in scores if name in summary} == pytest.approx(
            {name: value for name, value in scores.items() if name in summary}
        )
        assert "bits_per_sample" in summary and "free_run_rmse_4.model" in summary
        rows = list(csv.DictReader((run.folder / f"out/eval_runner/checkpoint-{step}/free_run.csv").open()))
        assert [row["horizon"] for row in rows] == ["1", "2", "3", "4"]
        assert (run.folder / f"out/eval_runner/checkpoint-{step}/free_run.png").stat().st_size > 10_000
    run(*SAVES, "eval_runner={metrics_split: train, max_batches: 1, analyses: []}", out="train")
    summary = json.loads((run.folder / "train/eval_runner/checkpoint-4/summary.json").read_text())
    assert "loss" in summary and not any("free_run" in name for name in summary)
    run(*SAVES, "eval_runner={enabled: false}", out="off")
    assert not (run.folder / "off/eval_runner").exists()
    for section, word in (
        ("{metrics_split: test}", "test"),
        ("{example_sampler: {context_length_steps: 10}}", "10"),
        ("{generator: {sampling: {strategy: top_p}}}", "top_p"),
    ):
        assert word in error_line(capsys, run, f"eval_runner={section}", out="wrong")


# ---- spec 002's words ----


def test_the_minimal_example_runs(run, monkeypatch):
    """Verbatim, with a recording; on a machine without a GPU the accelerator is another one."""
    if not SPEC.exists():
        pytest.skip("the document is not here")
    example = re.findall(r"```yaml\n(.*?)```", SPEC.read_text(), re.S)[-1]
    (run.folder / "example.yaml").write_text(example)
    file = signals_tokens.write_signals(run.folder / "signals.npz", samples=1700)
    words = ["--task_name", "signals", "--training_config", str(run.folder / "example.yaml")]
    words += ["--output_dir", str(run.folder / "out"), "--set", f"dataset.path={file}", "dataset.window=32"]
    words += [f"cache_dir={run.folder / 'cache'}", "report_to=none", "model.n_embd=16", "model.n_layer=1"]
    words += ["model.n_head=2", "accelerator=cpu", "dataloader_num_workers=0"]
    words += ["dataloader_persistent_workers=false", "dataloader_prefetch_factor=null"]
    trainer = train.main(words)
    args, log = trainer.args, trainer.state.log_history
    assert (args.per_device_train_batch_size, args.bf16, args.max_grad_norm, args.logging_steps) == (4, True, 1.0, 100)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1
    first = next(line for line in log if "learning_rate" in line)
    assert first["step"] == 100 and first["learning_rate"] == pytest.approx(2e-4 * 99 / 1000, rel=0.02)
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.1 and trainer.state.epoch == 100  # no early stopping: it learns to the end


def test_workers_that_stay_end_in_silence(run):
    """As the document's example has them: `persistent_workers`."""
    words = [*signals_tokens.words(run.folder), "--set", *QUICK.split(), f"output_dir={run.folder / 'out'}"]
    words += [f"cache_dir={run.folder / 'cache'}", "dataloader_num_workers=1", "dataloader_persistent_workers=true"]
    done = subprocess.run([sys.executable, "train.py", *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def words_of_spec(run, text, out="out"):
    """The run of a training file in the words of spec 002."""
    file = signals_tokens.write_signals(run.folder / "signals.npz", samples=700)
    (run.folder / "spec.yaml").write_text(text.replace("FILE", str(file)))
    words = ["--training_config", str(run.folder / "spec.yaml"), "--output_dir", str(run.folder / out)]
    return [*words, "--set", *QUICK.split(), f"cache_dir={run.folder / 'cache'}"]


BASE = """
datasplitter:
  {dataset_root: FILE, example_seconds: 0.2, overlap_seconds: 0.1, split_strategy: time,
  val_ratio: 0.2, test_ratio: 0.1}
model_name: STGPT2MEG
model_config: MODEL
loss_name: CrossEntropy
loss: {label_smoothing: 0.1}
"""


def test_model_and_loss_by_their_names_there(run):
    """`model_config` is a file of arguments alone; the splitter's seconds are 20 samples of 100 Hz."""
    model = run.folder / "model.yaml"
    model.write_text("n_layer: 1\nn_head: 2\nn_embd: 8\n")
    trainer = train.main(words_of_spec(run, BASE.replace("MODEL", str(model))))
    network, loss = trainer.model, trainer.settings.loss
    assert (network.config.layout, network.config.n_embd, network.config.context) == ("streams", 8, 20)
    assert loss.label_smoothing == 0.1
    assert set(trainer.settings.test_datasets) == set() and len(trainer.eval_dataset) == 13
    flat = BASE.replace("STGPT2MEG", "FlatGPT").replace("MODEL", str(model))
    assert train.main(words_of_spec(run, flat, "flat")).model.config.layout == "flattened"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_name: FlatGTP\n", ["FlatGTP", "FlatGPT"]),
        ("model_name: NTD\n", ["NTD"]),
        ("loss_name: CrossEntropyLos\n", ["CrossEntropyLos", "CrossEntropyLoss"]),
        ("dataloader_class: MixupLoader\n", ["MixupLoader", "MixupDataLoader"]),
        ("dataloader_class: DataLoader\ndataloader: {max_val: 2.0}\n", ["max_val", "MixupDataLoader"]),
        ("datasplitter: {dataset_class: ChunkDataset3D}\n", ["ChunkDataset3D"]),
        ("datasplitter: {example_second: 1}\n", ["example_second"]),
    ],
)
def test_words_that_stand_for_nothing_are_refused(run, capsys, text, words):
    line = error_line(capsys, train.main, words_of_spec(run, f"{text}dataset: {{name: signals, path: FILE}}\n"))
    assert all(word in line for word in words)


def test_mixup_by_its_loader(run):
    """All of its keys arrive; labels are mixed in training and whole in validation."""
    options = {"mixup_alpha": 0.4, "mixup_prob": 0.9, "num_classes": 2, "quantize": True, "mu": 63, "max_val": 4.0}
    assert set(options) == set(LOADERS["MixupDataLoader"])
    words = signals_classes.words(run.folder)
    file = run.folder / "training.yaml"
    loader = {"dataloader_class": "MixupDataLoader", "dataloader": {"batch_size": 8, **options}}
    file.write_text(file.read_text() + yaml.safe_dump(loader))
    settings = [*QUICK.split(), f"output_dir={run.folder / 'out'}", f"cache_dir={run.folder / 'cache'}"]
    trainer = train.main([*words, "--set", *settings])
    mixed = vars(trainer.settings.train_transform.config)
    assert mixed == options
    assert trainer.model.config.vocab_size == 64
    scores = evaluation.main(["--checkpoint", str(run.folder / "out")])
    assert 0 <= scores["accuracy"] <= 1 and math.isfinite(scores["loss"])


def test_text_over_signals_by_its_loader(run):
    """`prepare.py` trains the tokenizer; `TextDataLoader` names it, and its length limits the context."""
    file, folder = signals_tokens.write_signals(run.folder / "signals.npz", samples=700), run.folder / "tok"
    (run.folder / "task.yaml").write_text(
        f"dataset: {{name: signals, path: {file}, window: 20, levels: 16, group: 5, tokenizer_size: 40}}\n"
    )
    task = ["--task_name", str(run.folder / "task.yaml"), "--set"]
    text = ["dataset.target=text", f"dataset.tokenizer_path={folder}"]
    prepare.main([*task, *text])
    assert (folder / "tokenizer/tokenizer.json").is_file()
    loader = {"tokenizer_path": str(folder), "max_length": 30, "use_separator": True}
    assert set(loader) == set(LOADERS["TextDataLoader"])
    model = {"model_name": "STGPT2MEG", "model": {"n_layer": 1, "n_head": 2, "n_embd": 16}}
    (run.folder / "text.yaml").write_text(
        yaml.safe_dump({"dataloader_class": "TextDataLoader", "dataloader": loader, **model})
    )
    places = [f"output_dir={run.folder / 'out'}", f"cache_dir={run.folder / 'cache'}"]
    words = ["--training_config", str(run.folder / "text.yaml"), *task, *QUICK.split(), *places]
    trainer = train.main(words)
    batch = trainer.train_dataset.__getitems__([0, 1])
    assert trainer.model.config.context == 30 >= batch["input_ids"].shape[1]
    assert trainer.model.config.vocab_size == trainer.train_dataset.text.vocab_size
    scores = evaluation.main(["--checkpoint", str(run.folder / "out")])
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-5)


# ---- scores and forecasts ----


def test_scores_beside_baselines(run):
    run("max_steps=2")
    scores = evaluation.main(["--checkpoint", str(run.folder / "out"), "--samples", "2", "--tokens", "4"])
    written = json.loads((run.folder / "out/eval/scores.json").read_text())
    assert set(written["baselines"]) == {"unigram", "bigram", "last value", "ar8", "ar32"}
    mean = (scores["bits_per_sample.ch0"] + scores["bits_per_sample.ch1"]) / 2
    assert scores["bits_per_sample"] == pytest.approx(mean, rel=1e-4)
    assert scores["loss"] / math.log(2) == pytest.approx(scores["bits_per_sample"], rel=1e-4)
    rows = list(csv.DictReader((run.folder / "out/eval/labels.csv").open()))
    assert [row["label"] for row in rows] == ["ch0", "ch1", "mean"]
    assert scores["free_run_rmse_4.last_value"] > 0 and (run.folder / "out/eval/free_run.png").exists()


@pytest.mark.parametrize("words, top_k", [([], None), (["--top_k", "200"], 200)])
def test_continuations_are_drawn_from_all_ids_by_default(tmp_path, words, top_k):
    asked = entry_flags(evaluation.EvalArguments, ["--checkpoint", "out", *words], "eval.py", None)
    options = {}
    bundle = SimpleNamespace(free_run=lambda *places, **given: options.update(given) or {"rmse": 1.0})
    evaluation.free_runs(asked, None, bundle, {"validation": None}, tmp_path)
    assert options == {"steps": 256, "samples": 0, "temperature": 0.8, "top_k": top_k, "top_p": None}


def test_other_recordings_are_scored_with_the_scaling_of_training(run, capsys):
    """Those of twice the size are other ids; other channels are refused."""
    trainer = run("max_steps=2")
    with np.load(run.folder / "signals.npz") as arrays:
        larger = {"data": 2 * arrays["data"] + 1, "sampling_rate": 100.0}
    np.savez(run.folder / "larger.npz", **larger)
    words = ["--checkpoint", str(run.folder / "out"), "--data"]
    scores = evaluation.main([*words, str(run.folder / "larger.npz")])
    described = json.loads((run.folder / "out/signals.json").read_text())
    shift, scale = (np.array(described[name])[:, None] for name in ("shift", "scale"))
    held_out = np.clip((larger["data"][:, -118:] - shift) / scale, -5, 5).astype(np.float32)
    ids = torch.from_numpy(trainer.eval_dataset.tokenizer.encode(held_out))
    starts = range(0, 118 - 9, 10)
    rows, following = (torch.stack([ids[:, a + step : a + step + 10] for a in starts[:-1]]) for step in (0, 1))
    with torch.no_grad():
        loss = trainer.model.eval()(rows, following)["loss"].item()
    assert scores["loss"] == pytest.approx(loss, rel=0.05)  # a window at the end may differ
    np.savez(run.folder / "other.npz", **larger, channels=np.array(["x", "y"]))
    line = error_line(capsys, evaluation.main, [*words, str(run.folder / "other.npz")])
    assert "x" in line and "ch0" in line


def predicted(run, name, *flags, out="out"):
    words = ["--checkpoint", run.folder / out, "--input", run.folder / "signals.npz", "--output", run.folder / name]
    predict.main([*map(str, words), *flags])
    return run.folder / name


def test_forecasts_in_three_formats(run):
    """The same numbers, in the file's units; they follow from the seed, and from the end of the recording alone."""
    import mne

    run("max_steps=2", "dataset.standardise=zscore")
    flags = ["--steps", "50", "--samples", "2", "--top_p", "0.9", "--seed", "5"]
    arrays = np.load(predicted(run, "f.npz", *flags))
    values = arrays["signals.npz"]
    assert values.shape == (2, 2, 50) and arrays["sampling_rate"] == 100 and list(arrays["channels"]) == ["ch0", "ch1"]
    rows = list(csv.DictReader(predicted(run, "f.csv", *flags).open()))
    table = np.array([[float(row["ch0"]), float(row["ch1"])] for row in rows]).reshape(2, 50, 2).transpose(0, 2, 1)
    np.testing.assert_allclose(table, values, rtol=1e-5)
    recording = mne.io.read_raw_edf(predicted(run, "f.edf", *flags), verbose="error")
    assert recording.info["sfreq"] == 100 and len(recording.ch_names) == 4
    np.testing.assert_allclose(recording.get_data()[:2], values[0], atol=2e-3)
    other = np.load(predicted(run, "g.npz", *flags[:-1], "6"))["signals.npz"]
    assert not np.array_equal(other, values) and not np.array_equal(values[0], values[1])


def test_a_forecast_by_hand(run):
    """The most probable id at each step, decoded and scaled back by hand."""
    trainer = run("max_steps=2")
    values = np.load(run.folder / "signals.npz")["data"]
    described = json.loads((run.folder / "out/signals.json").read_text())
    shift, scale = (np.array(described[name])[:, None] for name in ("shift", "scale"))
    tokenizer = trainer.train_dataset.tokenizer
    ids = torch.from_numpy(tokenizer.encode(((values - shift) / scale).astype(np.float32)))[None]
    by_hand = trainer.model.eval().generate(ids, 5, temperature=0)[0, :, -5:]
    expected = tokenizer.decode(by_hand.numpy()) * scale + shift
    found = np.load(predicted(run, "f.npz", "--steps", "5", "--temperature", "0"))["signals.npz"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_values_are_continued(run, capsys):
    """By WaveNet: of temperature 0 the mean, step by step, in the file's units."""
    trainer = run("max_steps=2", model="{name: wavenet, blocks: 1, layers: 3}", target="values")
    scores = evaluation.main(["--checkpoint", str(run.folder / "out"), "--samples", "1", "--tokens", "3"])
    assert {"rmse", "improvement", "free_run_rmse_3.model"} <= scores.keys()
    words = ["--checkpoint", str(run.folder / "out"), "--samples", "1", "--tokens", "3"]
    for flag, value in (("--top_k", "2"), ("--top_p", "0.5"), ("--prompt", "x")):
        assert f"{flag} {value}" in error_line(capsys, evaluation.main, [*words, flag, value])
    section = "{generator: {sampling: {strategy: top_k, top_k: 3}}}"
    wave = {"model": "{name: wavenet, blocks: 1, layers: 3}", "target": "values"}
    assert "top_k: 3" in error_line(capsys, run, f"eval_runner={section}", out="wrong", **wave)
    values = np.load(run.folder / "signals.npz")["data"]
    described = json.loads((run.folder / "out/signals.json").read_text())
    shift, scale = (np.array(described[name])[:, None] for name in ("shift", "scale"))
    signal = torch.from_numpy(((values - shift) / scale).astype(np.float32))[None]
    with torch.no_grad():
        for _ in range(3):
            step = trainer.model.eval()(signal=signal)["prediction"][..., -1:]
            signal = torch.cat((signal, step), dim=-1)
    found = np.load(predicted(run, "f.npz", "--steps", "3", "--temperature", "0"))["signals.npz"]
    np.testing.assert_allclose(found[0], signal[0, :, -3:].numpy() * scale + shift, rtol=1e-4, atol=1e-4)


def test_inputs_that_do_not_fit_the_model(run, capsys):
    run("max_steps=1")
    for name, keys, word in (
        ("other.npz", {"sampling_rate": 50.0}, "50"),
        ("named.npz", {"sampling_rate": 100.0, "channels": np.array(["a", "b"])}, "ch0"),
    ):
        np.savez(run.folder / name, data=np.ones((2, 90)) * np.arange(90), **keys)
        words = ["--checkpoint", run.folder / "out", "--input", run.folder / name, "--output", run.folder / "x.npz"]
        with pytest.raises(SystemExit) as ended:
            command_line(predict.main, [*map(str, words)])
        assert ended.value.code == 2 and word in capsys.readouterr().err
    for output in ("x.txt", "-"):
        with pytest.raises(SystemExit) as ended:
            command_line(predicted, run, output)
        assert ended.value.code == 2


def test_classes_of_new_recordings(run):
    """The probabilities are the network's on each trial alone."""
    run("max_steps=2", recipe=signals_classes)
    words = ["--checkpoint", run.folder / "out", "--input", run.folder / "val.ts", "--output", run.folder / "c.csv"]
    predict.main([*map(str, words)])
    rows = list(csv.reader((run.folder / "c.csv").open()))
    assert rows[0] == ["window", "probability.fast", "probability.slow", "class"] and len(rows) == 12
    for row in rows[1:]:
        chances = list(map(float, row[1:3]))
        assert sum(chances) == pytest.approx(1, abs=1e-5) and row[3] == ("fast", "slow")[int(np.argmax(chances))]


def test_scores_of_classes(run):
    """The table's counts are those of predict.py's classes; accuracy by subject sums to that of all."""
    run("max_steps=2", recipe=signals_classes)
    scores = evaluation.main(["--checkpoint", str(run.folder / "out")])
    rows = list(csv.DictReader((run.folder / "out/eval/labels.csv").open()))
    counts = np.array([[int(row["as fast"]), int(row["as slow"])] for row in rows])
    assert counts.sum() == 11 and counts.trace() / 11 == pytest.approx(scores["accuracy"])
    recalls = counts.diagonal() / counts.sum(1)
    assert scores["balanced_accuracy"] == pytest.approx(recalls.mean())
    subjects = list(csv.DictReader((run.folder / "out/eval/subjects.csv").open()))
    right = sum(int(row["samples"]) * float(row["accuracy"]) for row in subjects)
    assert right == pytest.approx(counts.trace()) and (run.folder / "out/eval/confusion.png").exists()


@pytest.mark.parametrize("name", ["BasicMotions", "JapaneseVowels"])
def test_the_recipe_of_motions_learns(run, name):
    """In a quarter of its steps; docs/signals.md has the figures of the whole recipe."""
    folder = SPEC.parents[1] / "data/signals" / name
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    words = ["--training_config", "motions_cpu", "--output_dir", str(run.folder / "out"), "--set", "max_steps=75"]
    words += [f"dataset.path={folder / name}_TRAIN.ts", f"dataset.test_path={folder / name}_TEST.ts", "report_to=none"]
    train.main([*words, f"cache_dir={run.folder / 'cache'}"])
    scores = evaluation.main(["--checkpoint", str(run.folder / "out"), "--split", "test"])
    assert scores["accuracy"] > 0.95


def test_a_learned_tokenizer_is_named_by_its_folder(run):
    """Trained on values, then the data's tokenizer, then that of forecasts."""
    model = "{name: rvq, strides: [2, 2], width: 8, code_dim: 4, levels: 8}"
    run("max_steps=30", model=model, out="codes", levels=None, target="values", window=16)
    coded = {"tokenizer": run.folder / "codes", "window": 16, "levels": None}
    trainer = run("max_steps=3", out="out", **coded)
    assert trainer.model.config.vocab_size == 16 and trainer.model.config.context == 8
    scores = evaluation.main(["--checkpoint", str(run.folder / "out"), "--samples", "1", "--tokens", "4"])
    assert scores["bits_per_sample"] == pytest.approx(scores["loss"] / math.log(2) / 2, rel=1e-4)
    values = np.load(predicted(run, "f.npz", "--steps", "10"))["signals.npz"]
    assert values.shape == (1, 2, 10) and np.isfinite(values).all()
