"""The CSV table against metrics.jsonl, and what other loggers make of the section."""

import csv
import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from tiny_training import make_trainer

from trainer.callbacks.csv_logger import CsvLog, log_folder, logger_environment
from trainer.settings import LoggingConfig

pytestmark = pytest.mark.slow  # whole small runs, many of them


settings = LoggingConfig


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder, checkpoint=None, **options):
    options = {
        "max_steps": 6,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    } | options
    trainer = make_trainer(folder, **options)
    trainer.add_callback(CsvLog(folder))
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
    return trainer


def test_the_table_holds_what_metrics_jsonl_holds(tmp_path):
    logged(tmp_path, eval_strategy="steps", eval_steps=2)  # evaluations bring columns of their own, later
    rows, lines = table(tmp_path), records(tmp_path)
    assert len(rows) == len(lines) == 6 + 3 + 1
    for row, line in zip(rows, lines, strict=True):
        assert {name: value for name, value in row.items() if value} == {name: str(line[name]) for name in line}
    assert list(rows[0])[:2] == ["step", "loss"] and "eval_loss" in rows[0]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("torn", ["", "3,0.5", "3,0.5\n", '3,"'])
def test_a_resumed_table_has_every_step_once(tmp_path, torn):
    """Killed after step 5, with a row that was cut or short; resumed from step 3."""
    logged(tmp_path, max_steps=5)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write(torn)
    logged(tmp_path, checkpoint="checkpoint-3")
    steps = [row["step"] for row in table(tmp_path) if row["loss"]]
    assert steps == ["1", "2", "3", "4", "5", "6"]
    assert [row["loss"] for row in table(tmp_path) if row["loss"]] == [
        str(line["loss"]) for line in records(tmp_path) if "loss" in line
    ]


@pytest.mark.parametrize("damage", ["step\n²\n", "step\n" + "9" * 200_000 + "\n", "step,\x00\nx"])
def test_a_damaged_table(tmp_path, damage):
    """Rows that can be read stay, others go; the run goes on."""
    (tmp_path / "metrics.csv").write_text(damage)
    logged(tmp_path, max_steps=2)
    assert [row["step"] for row in table(tmp_path) if row["loss"]] == ["1", "2"]


def test_values_with_commas_and_not_a_number(tmp_path):
    log, state = CsvLog(tmp_path), SimpleNamespace(is_world_process_zero=True, global_step=7)
    log.on_log(None, state, None, logs={"loss": float("nan"), "note": 'a, "b"\nc'})
    log.on_log(None, state, None, logs={"more": 1})
    assert table(tmp_path) == [
        {"step": "7", "loss": "nan", "note": 'a, "b"\nc', "more": ""},
        {"step": "7", "loss": "", "note": "", "more": "1"},
    ]


def test_only_the_first_process_writes(tmp_path):
    log, state = CsvLog(tmp_path), SimpleNamespace(is_world_process_zero=False, global_step=7)
    log.on_train_begin(None, state, None)
    log.on_log(None, state, None, logs={"loss": 1.0})
    assert not os.listdir(tmp_path)


def test_folders(tmp_path):
    assert log_folder(settings(), tmp_path) == tmp_path
    assert log_folder(settings(name="a"), tmp_path, "logs") == tmp_path / "logs" / "a"
    assert log_folder(settings(name="a", save_dir="/x"), tmp_path, "logs").as_posix() == "/x/a"


def test_nothing_is_said_where_nothing_logs(tmp_path):
    assert logger_environment(settings(name="a", group="b", project="c"), tmp_path) == {}


def test_tensorboard_writes_where_the_section_says(tmp_path, monkeypatch):
    environment = logger_environment(
        settings(logger_type="TensorBoardLogger", name="one", save_dir=str(tmp_path / "tb")), tmp_path
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    make_trainer(tmp_path / "out", max_steps=2, report_to="tensorboard").train()
    (events,) = (tmp_path / "tb" / "one").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and not list((tmp_path / "out").glob("runs"))
    plain = logger_environment(settings(logger_type="TensorBoardLogger"), tmp_path)
    assert plain == {"TENSORBOARD_LOGGING_DIR": str(tmp_path / "logs")}


@pytest.mark.parametrize(
    ("log_model", "word"), [("all", "checkpoint"), ("best", "end"), (True, "end"), (False, "false"), (None, None)]
)
def test_what_wandb_uploads(tmp_path, log_model, word):
    from transformers.integrations.integration_utils import WandbLogModel

    environment = logger_environment(settings(logger_type="WandbLogger", log_model=log_model), tmp_path)
    assert environment.get("WANDB_LOG_MODEL") == word
    assert word is None or WandbLogModel(word).value == word  # a word that transformers knows


def test_where_wandb_writes(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    section = settings(logger_type="WandbLogger", mode="offline")
    assert logger_environment(section, tmp_path / "out") == {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path / "out"),
    }
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mine"))
    assert logger_environment(section, tmp_path / "out")["WANDB_DIR"] == str(tmp_path / "mine")
    section = settings(logger_type="WandbLogger", save_dir=str(tmp_path / "w"))
    assert logger_environment(section, tmp_path / "out") == {"WANDB_DIR": str(tmp_path / "w")}


@pytest.mark.slow
def test_wandb_offline_knows_the_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    given = {"project": "our-project", "entity": "our-team", "group": "our-group", "notes": "what we wanted to know"}
    section = settings(logger_type="WandbLogger", name="our-run", save_dir=str(tmp_path / "w"), **given)
    environment = logger_environment(section, tmp_path)
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_GIT": "true"}
    for name, value in (environment | quiet).items():
        monkeypatch.setenv(name, value)
    try:
        make_trainer(tmp_path / "out", max_steps=2, report_to="wandb").train()
        run = wandb.run
        assert (run.name, run.project, run.entity) == ("our-run", "our-project", "our-team")
        assert (run.group, run.notes) == ("our-group", "what we wanted to know")
        wandb.finish()
    finally:
        wandb.teardown()
    (kept,) = (tmp_path / "w" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for value in (*given.values(), "our-run", "train/loss"):
        assert value.encode() in content, value
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "wandb"], capture_output=True, text=True)
    assert not children.stdout


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"logger_type": "CSVLogger", "group": "g"}, "`logging.group`"),
        ({"logger_type": "TensorBoardLogger", "log_model": "all"}, "`logging.log_model`"),
        ({"entity": "e"}, "`logging.entity`"),
        ({"notes": "e", "project": "p"}, "`logging.notes`"),
    ],
)
def test_keys_that_a_logger_has_no_place_for(tmp_path, given, key):
    with pytest.raises(ValueError, match=key):
        logger_environment(settings(**given), tmp_path, ["trackio"])


def test_one_of_several_loggers_is_enough(tmp_path):
    both = logger_environment(settings(project="p"), tmp_path, ["tensorboard", "wandb"])
    assert both == {"TENSORBOARD_LOGGING_DIR": str(tmp_path / "logs"), "WANDB_PROJECT": "p", "WANDB_DIR": str(tmp_path)}
