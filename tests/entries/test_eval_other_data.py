"""eval.py on other data and with other settings, and a run that is used from another folder."""

import contextlib
import io
import json

import h5py
import numpy as np
import pytest
import torch
import yaml
from demonstration_files import write_act_folder
from safetensors.torch import load_file
from small_runs import SmallRuns

import eval as evaluation
import train
from loader.command_line.entry import command_line
from loader.errors import Problems
from loader.sources.config_tree import find
from loader.sources.layers import set_layer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose files name everything by relative paths, started in its folder."""
    folder = tmp_path_factory.mktemp("run")
    runs = SmallRuns(folder)
    task = (folder / "task.yaml").read_text()
    (folder / "task.yaml").write_text(task.replace(str(folder / "episodes"), "episodes"))
    words = runs.words()
    with contextlib.chdir(folder):
        trainer = train.main(words)
    write_act_folder(folder / "other", (9, 14, 11), seed=5)
    return folder, trainer


def scores(folder, *words):
    return evaluation.main(["--checkpoint", str(folder / "out"), *words])


@pytest.mark.slow
def test_run_yaml_holds_absolute_paths(run, tmp_path, monkeypatch):
    folder, trainer = run
    saved = yaml.safe_load((folder / "out/run.yaml").read_text())
    assert saved["dataset"]["path"] == str(folder / "episodes")
    monkeypatch.chdir(tmp_path)
    assert scores(folder)["loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        words = ["--training_config", str(folder / "out/run.yaml"), "--output_dir", str(tmp_path / "again")]
        again = train.main(words)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize("name", ["😀.jsonl", "a 'ü': # \"b\"", "[1, 2]"])
def test_any_path_may_name_other_data(name):
    layer = set_layer(evaluation.overrides(evaluation.EvalArguments(data=name)), problems := Problems())
    assert problems.lines == [] and find(layer, "dataset.path").value == name


@pytest.mark.slow
def test_other_data_is_read_with_the_normalization_of_the_training(run):
    """The loss of another folder is that of the network on its episodes, normalized by the run's statistics."""
    folder, trainer = run
    found = scores(folder, "--data", str(folder / "other"), "--split", "train", "--set", "dataset.eval_fraction=0")
    assert found["loss"] == pytest.approx(loss_by_hand(folder / "out", folder / "other"), rel=1e-5)
    assert found["loss"] != pytest.approx(scores(folder)["loss"], rel=1e-3)


def loss_by_hand(run, episodes):
    """Mean absolute error of the network's two layers over the real steps of all chunks, in units of the run's
    standard deviations."""
    weights = {name: value.double().numpy() for name, value in load_file(run / "model.safetensors").items()}
    statistics = json.loads((run / "statistics.json").read_text())
    total = count = 0
    for file in sorted(episodes.glob("*.hdf5")):
        with h5py.File(file) as root:
            rows = {"state": root["observations/qpos"][()], "action": root["action"][()]}
        for name, values in rows.items():
            scale = statistics[name]
            rows[name] = (values - scale["mean"]) / np.maximum(scale["std"], 0.01)
        hidden = np.maximum(rows["state"] @ weights["trunk.0.weight"].T + weights["trunk.0.bias"], 0)
        chunks = (hidden @ weights["head.weight"].T + weights["head.bias"]).reshape(len(hidden), 3, -1)
        for step, chunk in enumerate(chunks):
            errors = np.abs(chunk[: len(hidden) - step] - rows["action"][step : step + 3])
            total, count = total + errors.sum(), count + errors.size
    return total / count


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--set", "model.hidden_dim=3"], ["model.hidden_dim=3", "dataset"]),
        (["--set", "learning_rate=3"], ["learning_rate=3"]),
        (["--set", "dataset.chunksize=3"], ["dataset.chunksize", "chunk_size"]),
        (["--set", "dataset.chunk_size=5"], ["chunk_size 5", "3"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--set", "dataset.rename={qpos: state}"], ["dataset.rename"]),
        (["--samples", "1", "--top_p", "0.5"], ["--top_p"]),
    ],
)
def test_what_a_trained_model_cannot_be_scored_with(run, capsys, words, parts):
    with pytest.raises(SystemExit) as left:
        command_line(scores, run[0], *words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and all(part in errors[0] for part in parts), errors
