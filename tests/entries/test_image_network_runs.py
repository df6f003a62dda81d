"""Every kind of image classifier through train.py, eval.py and predict.py: predictions are what was scored."""

import csv
import json

import numpy as np
import pytest
from image_networks import NETWORKS
from recipes import images
from sklearn.metrics import average_precision_score, log_loss

import eval as evaluation
import predict
import train
from models.auto import load

pytestmark = pytest.mark.slow

STEP = """max_steps=1 learning_rate=0.001 lr_scheduler_type=constant warmup_steps=0 do_eval=false save_strategy=no
    report_to=none per_device_train_batch_size=8 dataset.image_size=32 accelerator=cpu"""


def trained(folder, kind, *settings, out="out"):
    model = json.dumps(
        {"name": "auto", "task": "image_classification", "config": {"model_type": kind, **NETWORKS[kind]}}
    )
    words = images.words(folder, model=model) if not (folder / "training.yaml").exists() else None
    words = words or ["--training_config", str(folder / "training.yaml")]
    places = (f"output_dir={folder / out}", f"cache_dir={folder / 'c'}")
    return train.main([*words, "--set", *STEP.split(), *places, *settings])


def predictions(folder, out):
    """(probabilities, targets) of the validation images, each (N, 3)."""
    table, target = folder / "val" / "labels.csv", folder / f"{out}.csv"
    predict.main(["--checkpoint", str(folder / out), "--input", str(table), "--output", str(target)])
    rows, truth = (list(csv.reader(file.read_text().splitlines()))[1:] for file in (target, table))
    assert [row[0] for row in rows] == [row[0] for row in truth]
    return tuple(np.array([[float(value) for value in row[1:4]] for row in part]) for part in (rows, truth))


@pytest.mark.parametrize("kind", NETWORKS)
def test_predictions_are_what_was_scored(tmp_path, in_root, kind):
    trainer = trained(tmp_path, kind)
    state, stored = trainer.model.state_dict(), load(tmp_path / "out").state_dict()
    assert all(np.array_equal(state[name].numpy(), stored[name].numpy()) for name in state)
    scores = evaluation.main(["--checkpoint", str(tmp_path / "out")])
    probabilities, targets = predictions(tmp_path, "out")
    expected = np.mean([log_loss(targets[:, label], probabilities[:, label]) for label in range(3)])
    assert scores["loss"] == pytest.approx(expected, rel=1e-4)
    if len(np.unique(probabilities[:, 0])) == len(probabilities):  # six decimals make no ties
        expected = [average_precision_score(targets[:, label], probabilities[:, label]) for label in range(3)]
        assert scores["macro_average_precision"] == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.keys("dataset(images).channels")
@pytest.mark.parametrize("channels", [1, 4])
def test_a_run_on_other_channels_from_pretrained_weights(tmp_path, in_root, channels):
    """With an adapter, which saves the changed convolution; predictions are those of the run's own model."""
    trained(tmp_path, "vit", out="base")
    lora = ("lora_enable=true", "lora_r=2")
    start = ("model.config=null", f"model_name_or_path={tmp_path / 'base'}")
    trainer = trained(tmp_path, "vit", *start, *lora, f"dataset.channels={channels}", "dataset.augment=true")
    assert trainer.train_dataset[0][0].shape == (channels, 32, 32)
    scores = evaluation.main(["--checkpoint", str(tmp_path / "out")])
    probabilities, targets = predictions(tmp_path, "out")
    expected = np.mean([log_loss(targets[:, label], probabilities[:, label]) for label in range(3)])
    assert scores["loss"] == pytest.approx(expected, rel=1e-4)
    base = tmp_path / "out" / "preprocessor_config.json"
    assert len(json.loads(base.read_text())["image_mean"]) == channels
