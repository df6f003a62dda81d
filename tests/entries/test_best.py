"""All ways to say «best» agree on one checkpoint, and follow the direction that the metric declares."""

import json

import pytest
from recipes import act, gpt_windows

import train
from loader.command_line.entry import command_line

MORE_IS_BETTER = {"better_than_chance"}
COMMON = """max_steps=6 eval_strategy=steps eval_steps=2 logging_steps=2 learning_rate=0.1 warmup_steps=0
    lr_scheduler_type=constant report_to=none seed=1 per_device_train_batch_size=4 save_total_limit=null"""


def run(folder, words, *settings, out="out"):
    train.main([*words, "--output_dir", str(folder / out), "--set", *COMMON.split(), *settings])
    log = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return folder / out, log


def best_step(log, key):
    values = {line["step"]: line[key] for line in log if key in line}
    assert len(values) == 3
    choose = max if key.removeprefix("eval_") in MORE_IS_BETTER else min
    best = choose(values, key=values.get)
    assert best != 6 and best != choose(values, key=lambda step: -values[step])  # the last or the worst is not the best
    return best


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["perplexity", "eval_bits_per_byte", "val/loss", "better_than_chance"])
def test_all_ways_agree(tmp_path, in_root, metric):
    words = gpt_windows.words(tmp_path)
    out, log = run(
        tmp_path, words, "save_strategy=steps", "save_steps=2", "load_best_model_at_end=true",
        f"metric_for_best_model={metric}",
        "checkpointing.save_top_k=1", f"checkpointing.monitor={metric}", f"early_stopping.monitor={metric}",
    )  # fmt: skip
    best = best_step(log, "eval_" + metric.removeprefix("eval_").removeprefix("val/"))
    state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    (stopping,) = (value for key, value in state["stateful_callbacks"].items() if key.startswith("early_stopping"))
    assert stopping["progress"]["best"] == next(iter(best_value(log, stopping["progress"]["metric"], best)))
    (monitor,) = json.loads((out / "checkpoints.json").read_text())["monitors"].values()
    assert [entry["step"] for entry in monitor["best"]] == [best]

    only, log = run(tmp_path, words, "save_strategy=best", f"metric_for_best_model={metric}", out="only")
    assert best in {int(path.name.removeprefix("checkpoint-")) for path in only.glob("checkpoint-*")}
    state = json.loads((only / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best


def best_value(log, key, step):
    return [line[key] for line in log if key in line and line["step"] == step]


@pytest.mark.slow
def test_a_named_loss_of_a_policy_is_minimised(tmp_path, in_root):
    out, log = run(
        tmp_path, act.words(tmp_path), "save_strategy=steps", "save_steps=2", "load_best_model_at_end=true",
        "metric_for_best_model=eval_loss_action",
    )  # fmt: skip
    state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
    values = {line["step"]: line["eval_loss_action"] for line in log if "eval_loss_action" in line}
    assert state["best_global_step"] == min(values, key=values.get)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("metric_for_best_model=eval_model_preparation_time", "greater_is_better"),
        ("checkpointing.monitor=train/grad_norm", "checkpointing.mode"),
        ("early_stopping.monitor=train/grad_norm", "early_stopping.mode"),
    ],
)
def test_an_unknown_direction_must_be_given(tmp_path, in_root, capsys, setting, remedy):
    with pytest.raises(SystemExit) as ended:
        command_line(
            run,
            tmp_path,
            gpt_windows.words(tmp_path),
            setting,
            "callbacks=[small_runs.Counts]",  # which may log any metric
            "save_strategy=steps",
            "save_steps=2",
            "load_best_model_at_end=true",
        )
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert setting.partition("=")[2] in (error := capsys.readouterr().err) and remedy in error
