"""The formulas against scikit-learn, on random and degenerate inputs."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from metrics import scores as formulas

N, L = 173, 6


def exact(expected):
    return pytest.approx(expected, abs=1e-9, nan_ok=True)


def random_case(seed=0):
    random = np.random.default_rng(seed)
    targets = (random.random((N, L)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.9]).astype(float)
    targets[0] = 1
    return random.random((N, L)), targets


def with_ties():
    scores, targets = random_case(1)
    return np.round(scores, 1), targets


def nothing_predicted():
    return np.zeros((N, L)), random_case()[1]


def everything_predicted():
    return np.ones((N, L)), random_case()[1]


def without_positives():
    scores, targets = random_case(2)
    targets[:, [1, 4]] = 0
    return scores, targets


def all_positive():
    scores, targets = random_case(3)
    targets[:, 2] = 1
    return scores, targets


def one_label():
    scores, targets = random_case(4)
    return scores[:, :1], targets[:, :1]


def one_sample():
    scores, _ = random_case(5)
    return scores[:1], np.array([[1.0, 0, 0, 1, 0, 1]])


CASES = [
    random_case,
    with_ties,
    nothing_predicted,
    everything_predicted,
    without_positives,
    all_positive,
    one_label,
    one_sample,
]


def of_scikit_learn(scores, targets, thresholds):
    kept = np.flatnonzero(targets.sum(0) > 0)
    predicted, targets = (scores >= thresholds).astype(int), targets.astype(int)
    values = {
        "subset_accuracy": (predicted == targets).all(1).mean(),
        "hamming_loss": reference.hamming_loss(targets, predicted),
        "micro_average_precision": reference.average_precision_score(targets.ravel(), scores.ravel()),
    }
    support = targets.sum(0)[kept]
    functions = {
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }
    for name, function in functions.items():
        each = [function(targets[:, label], predicted[:, label], zero_division=0) for label in kept]
        values[f"macro_{name}"], values[f"weighted_{name}"] = np.mean(each), np.average(each, weights=support)
        values[f"micro_{name}"] = function(targets.ravel(), predicted.ravel(), zero_division=0)
    each = [reference.average_precision_score(targets[:, label], scores[:, label]) for label in kept]
    values["macro_average_precision"] = np.mean(each)
    values["weighted_average_precision"] = np.average(each, weights=support)
    return values


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_multi_label_scores_are_those_of_scikit_learn(case, threshold):
    scores, targets = case()
    thresholds = [threshold] * scores.shape[1]
    values = formulas.multi_label_scores(scores, targets, thresholds)
    assert set(values) == set(formulas.MULTI_LABEL_DIRECTIONS)
    values.pop("calibration_error")
    assert values == exact(of_scikit_learn(scores, targets, np.array(thresholds)))


def test_a_diverged_model_has_the_usual_threshold():
    """NaN could not be written as JSON."""
    _, targets = random_case()
    assert formulas.tune_thresholds(np.full((N, L), np.nan), targets).tolist() == [0.5] * L


def test_means_of_scikit_learn_itself_where_all_labels_have_positives():
    """Not only label by label: its `average=` says the same."""
    scores, targets = random_case()
    values, predicted = formulas.multi_label_scores(scores, targets, [0.5] * L), scores >= 0.5
    for mean in ("macro", "micro", "weighted"):
        assert values[f"{mean}_f1"] == exact(reference.f1_score(targets, predicted, average=mean))
        average = reference.average_precision_score(targets, scores, average=mean)
        assert values[f"{mean}_average_precision"] == exact(average)


def test_unknown_targets_count_nowhere():
    """Each label is scored as if its unknown samples were not there."""
    scores, targets = random_case(7)
    hidden = np.random.default_rng(8).random((N, L)) < 0.3
    hidden[0], targets[hidden] = False, np.where(np.arange(hidden.sum()) % 2, np.nan, -1)
    values = formulas.multi_label_scores(scores, targets, [0.5] * L)
    parts = [(scores[~hidden[:, label], label], targets[~hidden[:, label], label]) for label in range(L)]
    each = [reference.average_precision_score(target, score) for score, target in parts]
    assert values["macro_average_precision"] == exact(np.mean(each))
    each = [reference.f1_score(target, score >= 0.5, zero_division=0) for score, target in parts]
    assert values["macro_f1"] == exact(np.mean(each))
    flat_scores, flat_targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert values["micro_average_precision"] == exact(reference.average_precision_score(flat_targets, flat_scores))
    assert values["hamming_loss"] == exact(np.mean((flat_scores >= 0.5) != flat_targets))


@pytest.mark.parametrize("targets", [np.zeros((4, 2)), np.full((4, 2), np.nan)])
def test_without_any_positive_the_means_are_not_defined(targets):
    values = formulas.multi_label_scores(np.full((4, 2), 0.2), targets, [0.5, 0.5])
    assert math.isnan(values["macro_f1"]) and math.isnan(values["weighted_average_precision"])
    assert values["hamming_loss"] == exact(0.0 if (targets == 0).all() else math.nan)


def test_a_diverged_model_has_scores_that_are_not_numbers():
    scores, targets = random_case()
    scores[3, 2] = np.nan
    values = formulas.multi_label_scores(scores, targets, [0.5] * L)
    assert set(values) == set(formulas.MULTI_LABEL_DIRECTIONS) and all(map(math.isnan, values.values()))


def test_precision_recall_curve_is_that_of_scikit_learn():
    scores, targets = with_ties()
    precision, recall, thresholds = formulas.precision_recall_curve(scores[:, 1], targets[:, 1])
    expected = reference.precision_recall_curve(targets[:, 1], scores[:, 1])
    assert precision.tolist() == exact(expected[0][-2::-1].tolist())  # without its last point, and in its other order
    assert recall.tolist() == exact(expected[1][-2::-1].tolist())
    assert thresholds.tolist() == expected[2][::-1].tolist()


def test_calibration_error_by_hand():
    confidences = np.array([0.05, 0.06, 0.5, 0.51, 1.0])
    correct = np.array([False, True, True, False, True])
    expected = (abs(0.11 - 1) + abs(1.01 - 1) + abs(1.0 - 1)) / 5
    assert formulas.calibration_error(confidences, correct) == exact(expected)
    random = np.random.default_rng(0)
    probabilities = random.random(200_000)
    assert formulas.calibration_error(probabilities, random.random(200_000) < probabilities) < 0.005


# ---- thresholds ----


def f1_at(threshold, scores, targets):
    """Of one threshold, or of each of several."""
    predicted = scores >= np.reshape(threshold, (-1, 1))
    return 2 * (predicted & (targets == 1)).sum(1) / (predicted.sum(1) + targets.sum())


@pytest.mark.parametrize("case", [random_case, with_ties, all_positive, one_label])
def test_tuned_thresholds_are_the_best_of_all(case):
    scores, targets = case()
    for label, threshold in enumerate(formulas.tune_thresholds(scores, targets)):
        column = scores[:, label], targets[:, label]
        assert f1_at(threshold, *column) == exact(f1_at(np.unique(column[0]), *column).max())
        assert f1_at(threshold, *column) == exact(reference.f1_score(column[1], column[0] >= threshold))
        assert 0 <= threshold <= 1


def test_thresholds_of_ties_and_of_labels_without_positives():
    scores = np.array([[0.9, 0.9, 0.2], [0.1, 0.7, 0.8], [0.2, 0.1, 0.6]])
    targets = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, np.nan]])
    # Midpoints of the gaps .9-.2 and .7-.1; no positives: .5.
    assert formulas.tune_thresholds(scores, targets).tolist() == exact([0.55, 0.4, 0.5])
    # F1 is 2/3 at .875 (one hit of one) and at .125 (two hits of four): equally far from .5, so the higher.
    scores, targets = np.array([[1.0], [0.75], [0.5], [0.25], [0.0]]), np.array([[1.0], [0], [0], [1], [0]])
    assert formulas.tune_thresholds(scores, targets).tolist() == exact([0.875])
    again = formulas.tune_thresholds(scores[::-1], targets[::-1])
    assert again.tolist() == exact([0.875])


def test_a_threshold_between_neighbouring_floats_still_separates():
    low = 0.7
    high = np.nextafter(low, 1)
    (threshold,) = formulas.tune_thresholds(np.array([[low], [high]]), np.array([[0.0], [1.0]]))
    assert low < threshold <= high


# ---- exclusive classes ----


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [0, 0, 0, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("guess", ["random", "constant"])
def test_single_label_scores_are_those_of_scikit_learn(classes, guess):
    random = np.random.default_rng(0)
    targets = random.choice(classes, 91)
    predicted = random.integers(0, 4, 91) if guess == "random" else np.full(91, 2)
    confusion = formulas.confusion_matrix(predicted, targets, 4)
    assert confusion.tolist() == reference.confusion_matrix(targets, predicted, labels=range(4)).tolist()
    expected = {"accuracy": reference.accuracy_score(targets, predicted)}
    functions = {
        "precision": reference.precision_score,
        "recall": reference.recall_score,
        "f1": reference.f1_score,
    }
    for name, function in functions.items():
        for mean in ("macro", "weighted"):
            options = {"labels": np.unique(targets), "average": mean, "zero_division": 0}
            expected[f"{mean}_{name}"] = function(targets, predicted, **options)
    assert formulas.single_label_scores(confusion) == exact(expected)
