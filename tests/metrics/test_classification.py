"""Metrics of classifiers on batches and logits, in one process and in two."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from metrics.classification import MultiLabelMetric, SingleLabelMetric

LABELS = ["flood", "rubble", "road", "debris.any"]


def exact(expected):
    return pytest.approx(expected, abs=1e-9, nan_ok=True)


def multi_label_data(samples=37):
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, 4, generator=random)
    labels = (torch.rand(samples, 4, generator=random) < torch.tensor([0.5, 0.3, 0.1, 0.8])).float()
    return logits, labels


def single_label_data(samples=53, classes=7):
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (samples,), generator=random)
    return 2 * torch.randn(samples, classes, generator=random) + torch.eye(classes)[labels], labels


def fed(metric, logits, labels, batch_size):
    metric.reset()
    for part, target in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        metric.update({"labels": target}, {"logits": part})
    return metric


@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_multi_label_values_on_uneven_batches(batch_size):
    logits, labels = multi_label_data()
    metric = fed(MultiLabelMetric(LABELS), logits, labels, batch_size)
    values, targets, scores = metric.compute(), labels.numpy(), logits.double().sigmoid().numpy()
    assert set(values) == set(metric.directions)
    for mean in ("macro", "micro", "weighted"):
        assert values[f"{mean}_average_precision"] == exact(
            reference.average_precision_score(targets, scores, average=mean)
        )
        assert values[f"{mean}_precision"] == exact(reference.precision_score(targets, scores >= 0.5, average=mean))
    assert values["subset_accuracy"] == exact(reference.accuracy_score(targets, scores >= 0.5))
    assert metric.notes() == []


def test_a_second_evaluation_forgets_the_first():
    logits, labels = multi_label_data()
    metric = fed(MultiLabelMetric(LABELS), logits, labels, 8)
    first = metric.compute()
    assert fed(metric, -logits, labels, 8).compute() != first
    assert fed(metric, logits, labels, 8).compute() == first


def test_a_row_for_each_label():
    logits, labels = multi_label_data()
    predicted = logits.double().sigmoid().numpy() >= 0.5
    for index, row in enumerate(fed(MultiLabelMetric(LABELS), logits, labels, 8).per_label()):
        assert row["label"] == LABELS[index] and row["threshold"] == 0.5
        assert row["f1"] == exact(reference.f1_score(labels[:, index], predicted[:, index]))


def test_labels_without_positives_are_named_and_left_out():
    logits, labels = multi_label_data()
    labels[:, 1] = 0
    metric = fed(MultiLabelMetric(LABELS), logits, labels, 8)
    kept = [0, 2, 3]
    expected = reference.f1_score(labels[:, kept], logits[:, kept] >= 0, average="macro")
    assert metric.compute()["macro_f1"] == exact(expected)
    assert math.isnan(metric.per_label()[1]["average_precision"])
    (note,) = metric.notes()
    assert "rubble" in note and not any(LABELS[index] in note for index in kept)


@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_single_label_values_on_uneven_batches(batch_size):
    logits, labels = single_label_data()
    metric = fed(SingleLabelMetric([f"c{index}" for index in range(7)]), logits, labels, batch_size)
    values, predicted = metric.compute(), logits.argmax(1)
    assert set(values) == set(metric.directions)
    assert values["accuracy"] == exact(reference.accuracy_score(labels, predicted))
    expected = reference.top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    assert values["top5_accuracy"] == exact(expected) and expected > values["accuracy"]
    assert values["macro_recall"] == exact(reference.balanced_accuracy_score(labels, predicted))
    assert values["weighted_f1"] == exact(reference.f1_score(labels, predicted, average="weighted"))
    assert metric.confusion_matrix().tolist() == reference.confusion_matrix(labels, predicted).tolist()
    confidence = logits.softmax(1).amax(1)
    bins = [(confidence >= low / 15) & (confidence < (low + 1) / 15) for low in range(15)]
    gaps = [abs((confidence[part].double() - (predicted == labels)[part].double()).sum()) for part in bins]
    assert values["calibration_error"] == pytest.approx(float(sum(gaps)) / len(labels), abs=1e-6)


def test_equal_logits_and_samples_without_label():
    """Of equal logits the first class is predicted, and top-5 counts the first five."""
    metric = SingleLabelMetric("abcdefg")
    metric.update({"labels": torch.tensor([0, 4, 5, -100])}, {"logits": torch.zeros(4, 7)})
    values = metric.compute()
    assert values["accuracy"] == exact(1 / 3) and values["top5_accuracy"] == exact(2 / 3)
    assert [row["support"] for row in metric.per_label()] == [1, 0, 0, 0, 1, 1, 0]
    assert "b, c, d, g" in metric.notes()[0]


def test_the_predicted_class_is_that_of_the_largest_logit():
    """Also where the logits differ by less than the rounding of their probabilities."""
    logits = torch.tensor([[0.01, 0.01]])
    logits[0, 1] = torch.nextafter(logits[0, 1], torch.tensor(1.0))
    assert len(logits.softmax(1).unique()) == 1
    metric = SingleLabelMetric("ab")
    metric.update({"labels": torch.tensor([1])}, {"logits": logits})
    assert metric.compute()["accuracy"] == 1.0


def test_soft_targets_are_scored_by_their_largest():
    logits, labels = single_label_data(classes=3)
    soft = 0.8 * torch.eye(3)[labels] + 0.1
    hard = fed(SingleLabelMetric("abc"), logits, labels, 8).compute()
    assert fed(SingleLabelMetric("abc"), logits, soft, 8).compute() == hard and "top5_accuracy" not in hard


@pytest.mark.parametrize("metric", [MultiLabelMetric("ab"), SingleLabelMetric("ab")])
def test_an_empty_set_and_a_diverged_model_have_no_numbers(metric):
    assert math.isnan(metric.compute()["macro_f1"])
    metric.reset()
    labels = torch.ones(3, 2) if isinstance(metric, MultiLabelMetric) else torch.ones(3, dtype=torch.long)
    metric.update({"labels": labels}, {"logits": torch.full((3, 2), float("nan"))})
    values = metric.compute()
    assert set(values) == set(metric.directions) and all(map(math.isnan, values.values()))


@pytest.mark.slow
def test_importing_the_metrics_needs_no_torch():
    code = "import sys, metrics.classification, metrics.scores, metrics.report\n"
    code += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


SHARES = {"uneven": ([0, 2, 4], [1, 3, 5]), "empty": ([0, 1, 2, 3, 4, 5], [])}


def one_process(rank, folder):
    """One of two processes, which has only its share of the batches."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, metric, (logits, labels) in (
        ("multi", MultiLabelMetric(LABELS), multi_label_data()),
        ("single", SingleLabelMetric("abcdefg"), single_label_data()),
    ):
        for share, batches in SHARES.items():
            metric.reset()
            for index in batches[rank]:
                part = slice(10 * index, 10 * index + 10)
                metric.update({"labels": labels[part]}, {"logits": logits[part]})
            results[name, share] = metric.compute(), metric.per_label(), metric.notes()
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    """With uneven last batches; and where one process has none."""
    torch.multiprocessing.start_processes(one_process, (str(tmp_path),), nprocs=2, start_method="fork")
    one = {
        "multi": fed(MultiLabelMetric(LABELS), *multi_label_data(), 10),
        "single": fed(SingleLabelMetric("abcdefg"), *single_label_data(), 10),
    }
    for rank in (0, 1):
        for (name, _), (values, rows, notes) in torch.load(f"{tmp_path}/{rank}.pt", weights_only=False).items():
            metric = one[name]
            assert values == exact(metric.compute()) and rows == metric.per_label() and notes == metric.notes()


def test_equal_logits_have_equal_scores():
    """A vectorised sigmoid may differ in the last bit from the one for the rest of an array, which would break ties."""
    logits, labels = torch.full((37, 4), 0.731), multi_label_data()[1]
    scores, targets = fed(MultiLabelMetric(LABELS), logits, labels, 10).predictions()
    assert len(np.unique(scores)) == 1 and np.array_equal(targets, labels.numpy())
