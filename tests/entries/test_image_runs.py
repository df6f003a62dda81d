"""Images through train.py, eval.py and predict.py, against counts and computations by hand."""

import csv
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import convnet, images
from sklearn.metrics import average_precision_score

import eval as evaluation
import predict
import prepare
import train
from data.images.decode import Decoder
from data.images.preprocessing import Preprocessing
from data.images.report import Report
from loader.command_line.entry import command_line
from loader.schema.components import component_module, shipped
from metrics.classification import SingleLabelMetric
from models.auto import load

pytestmark = pytest.mark.slow

COMMON = """max_steps=6 logging_steps=2 learning_rate=0.02 lr_scheduler_type=constant warmup_steps=0 eval_strategy=steps
    eval_steps=6 save_strategy=no report_to=none per_device_train_batch_size=8"""


def run(folder, *settings, out="out", words=None):
    words = words or images.words(folder)
    places = (f"output_dir={folder / out}", f"cache_dir={folder / 'c'}")
    return train.main([*words, "--set", *COMMON.split(), *places, *settings])


def targets(table):
    rows = list(csv.reader(table.read_text().splitlines()))[1:]
    return [row[0] for row in rows], np.array([[int(value) for value in row[1:]] for row in rows])


def probabilities_by_hand(out, folder, names):
    """Decoded, normalised and scored one image at a time, without Keel's data set."""
    model = load(out).eval()
    made = Preprocessing.from_json(json.loads((out / "preprocessor_config.json").read_text()))
    rows = []
    for name in names:
        pixels = np.asarray(Image.open(folder / name).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)) / 255
        pixels = (pixels - made.mean) / made.std
        with torch.no_grad():
            logits = model(pixel_values=torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)).logits
        rows.append(logits.double().sigmoid()[0].numpy())
    return np.stack(rows)


@pytest.mark.keys("loss(bce).pos_weight")
def test_scores_report_and_predictions_are_those_by_hand(tmp_path, in_root):
    trainer = run(tmp_path, "loss.name=bce", "loss.pos_weight=auto")
    _, train_targets = targets(tmp_path / "train" / "labels.csv")
    count = train_targets.sum(0)
    assert trainer.settings.loss.pos_weight == pytest.approx((40 - count) / count)

    out = tmp_path / "out"
    scores = evaluation.main(["--checkpoint", str(out)])
    names, truth = targets(tmp_path / "val" / "labels.csv")
    by_hand = probabilities_by_hand(out, tmp_path / "val", names)
    expected = np.mean([average_precision_score(truth[:, label], by_hand[:, label]) for label in range(3)])
    assert scores["macro_average_precision"] == pytest.approx(expected, abs=1e-6)
    written = json.loads((out / "eval" / "scores.json").read_text())
    assert written["macro_average_precision"] == pytest.approx(expected, abs=1e-6)
    thresholds = json.loads((out / "eval" / "thresholds.json").read_text())
    assert list(thresholds) == list(images.LABELS)
    for name in ("labels.csv", "precision_recall.png", "mistakes.png"):
        assert (out / "eval" / name).stat().st_size > 100

    table = tmp_path / "val" / "labels.csv"
    predict.main(["--checkpoint", str(out), "--input", str(table), "--output", str(tmp_path / "p.csv")])
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == names and rows[0][1] == "probability.red" and rows[0][4] == "decision.red"
    predicted = np.array([[float(value) for value in row[1:4]] for row in rows[1:]])
    assert predicted == pytest.approx(by_hand, abs=2e-6)
    decided = np.array([[int(value) for value in row[4:]] for row in rows[1:]])
    assert (decided == (by_hand >= list(thresholds.values()))).mean() > 0.99

    predict.main(["--checkpoint", str(out), "--input", str(table.parent), "--output", str(tmp_path / "all.csv")])
    whole = list(csv.reader((tmp_path / "all.csv").read_text().splitlines()))
    assert sorted(whole[1:]) == sorted(rows[1:])  # a folder of images with their table: each image once


@pytest.mark.keys(
    "model(auto).labels", "model(auto).problem_type", "model(auto).image_size", "model(auto).num_channels"
)
def test_labels_and_preprocessing_are_saved_with_the_model(tmp_path, in_root):
    """And the sizes of the data reach the network's configuration: labels, image_size, num_channels."""
    run(tmp_path, "max_steps=1")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(images.LABELS)}
    assert config["problem_type"] == "multi_label_classification"
    assert (config["image_size"], config["num_channels"]) == (16, 3)
    made = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert made["size"] == {"height": 16, "width": 16}


@pytest.mark.keys("dataset(images).on_bad_image", "dataset(images).cache_gb")
@pytest.mark.parametrize("cache", [32, 0])
def test_a_broken_image_is_named_or_left_out(tmp_path, in_root, capsys, cache):
    words = images.words(tmp_path)
    (tmp_path / "train" / "7.png").write_bytes(b"broken")
    settings = (f"dataset.cache_gb={cache}", "max_steps=1")
    if cache:
        with pytest.raises(SystemExit) as left:
            command_line(run, tmp_path, *settings, words=words)
        assert left.value.code == 2 and "7.png" in capsys.readouterr().err and not (tmp_path / "out").exists()
    trainer = run(tmp_path, *settings, "dataset.on_bad_image=skip", words=words)
    assert len(trainer.train_dataset) == 39 and "7.png" in capsys.readouterr().out


def test_images_from_the_cache_are_those_decoded_each_time(tmp_path, in_root):
    words = images.words(tmp_path)
    cached = run(tmp_path, "max_steps=1", words=words).train_dataset
    each = run(tmp_path, "max_steps=1", "dataset.cache_gb=0", out="other", words=words).train_dataset
    for left, right in zip(cached.__getitems__([3, 0, 39]), each.__getitems__([3, 0, 39]), strict=True):
        assert np.array_equal(left, right)
    assert np.array_equal(cached[3][0], Decoder(16)(tmp_path / "train" / "3.png"))


@pytest.mark.keys("dataset(images).test_path")
def test_a_test_set_of_its_own(tmp_path, in_root):
    words = images.words(tmp_path)
    table = images.write_images(tmp_path / "test", 9, 2)
    run(tmp_path, f"dataset.test_path={table}", "evaluate_test=true", "max_steps=1", words=words)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("test_macro_f1" in line for line in lines) == 1


@pytest.mark.keys("dataset(images).augment", "dataset(images).augmentation", "dataset(images).sampling")
def test_augmentation_and_sampling_change_what_is_trained_on(tmp_path, in_root):
    words = images.words(tmp_path)

    def losses(out, *settings):
        run(tmp_path, *settings, out=out, words=words)
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if '"loss"' in line]

    plain = losses("plain")
    assert losses("again") == plain
    assert losses("augmented", "dataset.augment=true", "dataset.augmentation.mixup=0.5") != plain
    assert losses("weighted", "dataset.sampling=weighted") != plain


def test_prepare_makes_mosaics(tmp_path, in_root, shared, monkeypatch, capsys):
    """Also: what is not made yet is said, and a source that is none; and a run on them resumes."""
    from data.images import fashion

    monkeypatch.setattr(fashion, "COUNTS", {"train": 40, "val": 10, "test": 10})
    words = ["--training_config", "mosaics_cpu", "--output_dir", str(tmp_path / "out"), "--set", "report_to=none"]
    words += ["warmup_ratio=0", "lr_scheduler_type=constant"]
    made = ["--task_name", "fashion_mosaics", "--source"]
    for broken in (lambda: train.main(words), lambda: prepare.main([*made, str(tmp_path)])):
        with pytest.raises(SystemExit) as left:
            command_line(broken)
        assert left.value.code == 2
    assert "prepare.py --task_name fashion_mosaics" in capsys.readouterr().err
    prepare.main([*made, str(shared / "data" / "images")])
    train.main([*words, "max_steps=1"])
    trainer = train.main([*words, "max_steps=2", "resume_from_checkpoint=auto"])
    assert trainer.state.global_step == 2
    assert len(trainer.train_dataset) == 40 and trainer.train_dataset[0][0].shape == (1, 64, 64)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("test_macro_average_precision" in line for line in lines)


def test_mixed_classes_need_a_loss_that_takes_shares(tmp_path, in_root, capsys):
    """A network of transformers takes one class each; cross_entropy and convnet take shares of classes."""
    words = convnet.words(tmp_path)
    mixed = ("dataset.augment=true", "dataset.augmentation.mixup=0.5", "max_steps=1")
    run(tmp_path, *mixed, words=words)
    auto = [f"model={images.NETWORK}", *mixed]
    with pytest.raises(SystemExit) as left:
        command_line(run, tmp_path, *auto, out="auto", words=words)
    assert left.value.code == 2 and "mixup" in capsys.readouterr().err
    run(tmp_path, *auto, "loss.name=cross_entropy", out="auto", words=words)


SCORED = [(name, kind) for name in shipped("loss") for kind in ("several labels", "one class")]


@pytest.mark.parametrize(("name", "kind"), SCORED)
def test_every_loss_is_evaluated_or_refused(tmp_path, in_root, name, kind):
    """The logged loss is that of the whole evaluation set in one batch, and the metrics are logged beside it."""
    several = kind == "several labels"
    network = "model={name: convnet, widths: [8], stem_stride: 1, norm: group}"
    words = images.words(tmp_path) if several else convnet.words(tmp_path)
    settings = (network, f"loss.name={name}", "max_steps=1", "eval_steps=1", "per_device_eval_batch_size=4")
    for_others = name in ("association", "gaussian_nll", "mse")
    if for_others or name == "cross_entropy" and several or name in ("bce", "asymmetric") and not several:
        with pytest.raises(SystemExit) as left:
            command_line(run, tmp_path, *settings, words=words)
        assert left.value.code == 2
        return
    trainer = run(tmp_path, *settings, words=words)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    (scores,) = [line for line in lines if "eval_runtime" in line]
    batch = trainer.data_collator(trainer.eval_dataset.__getitems__(list(range(11))))
    component = component_module("loss", name)
    with torch.no_grad():
        logits = trainer.model.eval()(batch["pixel_values"])["logits"]
    expected = component.build(component.Config())({"logits": logits}, batch)["loss"].item()
    assert scores["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert ("eval_macro_average_precision" if several else "eval_accuracy") in scores


def test_scores_of_other_data_and_of_the_training_set(tmp_path, in_root, capsys):
    """Neither changes the thresholds, which are tuned on the run's own validation set."""
    run(tmp_path, "max_steps=1", "evaluate_test=false")
    out, table = tmp_path / "out", images.write_images(tmp_path / "other", 13, 5)
    score = functools.partial(evaluation.main, ["--checkpoint", str(out)])
    score()
    tuned = (out / "eval/thresholds.json").read_text()
    with pytest.raises(SystemExit) as left:
        command_line(evaluation.main, ["--checkpoint", str(out), "--data", str(table)])
    assert left.value.code == 2 and "dataset.eval_path" in capsys.readouterr().err
    other = evaluation.main(["--checkpoint", str(out), "--set", f"dataset.eval_path={table}"])
    names, truth = targets(table)
    by_hand = probabilities_by_hand(out, table.parent, names)
    expected = np.mean([average_precision_score(truth[:, label], by_hand[:, label]) for label in range(3)])
    assert other["macro_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert json.loads((out / "eval/other/scores.json").read_text())["macro_f1_tuned"] >= 0
    of_training = evaluation.main(["--checkpoint", str(out), "--split", "train"])
    names, truth = targets(tmp_path / "train" / "labels.csv")
    by_hand = probabilities_by_hand(out, tmp_path / "train", names)
    expected = np.mean([average_precision_score(truth[:, label], by_hand[:, label]) for label in range(3)])
    assert of_training["macro_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert (out / "eval/thresholds.json").read_text() == tuned and (out / "eval/train/labels.csv").is_file()
    (out / "eval/thresholds.json").write_text("{")
    with pytest.raises(SystemExit) as left:
        command_line(evaluation.main, ["--checkpoint", str(out), "--split", "train"])
    assert left.value.code == 2 and "thresholds.json" in capsys.readouterr().err


def test_the_report_of_one_class_each(tmp_path):
    """Counts of the confusion, and the images whose wrong class is the most probable; transparency is drawn too."""
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [0, 0, 4]])
    batch = {"labels": torch.tensor([0, 2, 2, 2])}
    metric = SingleLabelMetric("abc")
    metric.update(batch, {"logits": logits})
    pixels = np.zeros((4, 4, 8, 8), np.uint8)
    Report(list("abc"), False)("validation", [(image, 0) for image in pixels], metric, metric.compute(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    counts = [[int(row[f"as {name}"]) for name in "abc"] for row in rows]
    assert counts == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert all((tmp_path / name).stat().st_size > 100 for name in ("confusion.png", "mistakes.png"))
    predicted, truth, confidence = metric.predictions()
    assert (predicted.tolist(), truth.tolist()) == ([0, 1, 0, 2], [0, 2, 2, 2])
    assert confidence == pytest.approx(logits.softmax(1).amax(1).numpy())
