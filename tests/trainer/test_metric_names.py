"""Names that users write, and what is logged."""

import pytest

from trainer.callbacks.metric_names import LatestMetrics, find_metric, metric_or_error, normal_form

LOGGED = ("loss", "loss_action", "grad_norm", "learning_rate", "eval_loss", "eval_loss_action", "eval_map/50", "epoch")


def logged(*names):
    return dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        *((name, "eval_loss") for name in ("loss", "val/loss", "val_loss", "eval_loss", "eval/loss", "valid_loss")),
        *((name, "loss") for name in ("train/loss", "train_loss")),
        ("loss_action", "eval_loss_action"),
        ("train/loss_action", "loss_action"),
        ("val/map/50", "eval_map/50"),
        ("map_50", "eval_map/50"),
        ("grad_norm", "grad_norm"),  # only training has one
        ("train/grad_norm", "grad_norm"),
        ("val/grad_norm", None),
        ("los", None),
    ],
)
def test_one_metric_has_many_spellings(written, found):
    assert find_metric(written, logged(*LOGGED)) == found


def test_evaluation_sets_have_names():
    metrics = logged("loss", "eval_left_loss", "eval_right_loss", "eval_val_loss", "grad_norm")
    assert find_metric("val/left/loss", metrics) == find_metric("eval_left_loss", metrics) == "eval_left_loss"
    assert find_metric("left_loss", metrics) == "eval_left_loss"
    assert find_metric("val_loss", metrics) == "eval_val_loss"  # a set that is called val
    assert find_metric("loss", metrics) is None  # which of three? never silently the training's
    assert find_metric("train/loss", metrics) == "loss"
    assert find_metric("grad_norm", metrics) == "grad_norm"


def test_the_running_loss_not_the_last_summary():
    assert find_metric("train_loss", logged("loss", "train_loss")) == "loss"
    assert find_metric("train_samples", logged("train_samples")) == "train_samples"


def test_the_error_names_what_there_is_and_the_nearest():
    with pytest.raises(ValueError) as error:
        metric_or_error("val/los", logged("eval_loss", "eval_accuracy", "loss", "epoch"), "early_stopping.monitor")
    assert str(error.value) == (
        "`early_stopping.monitor: val/los` is not logged; did you mean `eval_loss`? "
        "logged: eval_accuracy, eval_loss, loss"
    )
    with pytest.raises(ValueError, match="is not logged; logged: nothing"):
        metric_or_error("x", {}, "monitor")
    assert metric_or_error("val/loss", logged(*LOGGED), "monitor") == "eval_loss"


def test_spellings_that_surely_agree_have_one_form():
    assert {normal_form(name) for name in ("val/loss", "val_loss", "eval/loss", "eval_loss")} == {"eval_loss"}
    assert normal_form("train/loss") == "train_loss" and normal_form("loss") == "loss"


def test_latest_values_and_what_has_not_been_logged_yet():
    latest = LatestMetrics()
    assert all(map(latest.may_still_come, ("val/loss", "train/loss", "loss")))
    latest.begin([{"loss": 2.0, "step": 1}, {"loss": 1.0, "note": "text", "step": 2}])
    assert latest.values == {"loss": 1.0, "step": 2}
    assert [latest.may_still_come(name) for name in ("val/x", "train/x", "x")] == [True, False, True]
    latest.add({"eval_loss": 3})
    assert not any(map(latest.may_still_come, ("val/x", "train/x", "x")))
