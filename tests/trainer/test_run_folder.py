"""What a resumed run keeps of the lines that are there already, whoever has written them."""

import json
from types import SimpleNamespace

import pytest

from trainer.callbacks.csv_logger import read_table
from trainer.callbacks.log_files import drop_later_lines, json_number

STATE = SimpleNamespace(global_step=2, log_history=[{"step": 2, "loss": 0.5}])
KEPT = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in ((1, 0.7), (2, 0.5))]
HOSTILE = ["[" * 100_000, "9" * 10_000, '{"step": ' + "9" * 10_000 + "}", "\0" * 100, "[1]", "5", "", '{"step": "1"}']


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_lines_that_are_none_are_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(KEPT[0] + line + "\n" + KEPT[1] + '{"step": 3, "loss": 0.1}\n{"step": 2, "lo')
    drop_later_lines(path, STATE)
    assert path.read_text() == "".join(KEPT)


def test_rows_whose_step_no_number_holds_are_none(tmp_path):
    (tmp_path / "metrics.csv").write_text(f"step,loss\n1,0.7\n{'9' * 10_000},0.5\n")
    assert read_table(tmp_path / "metrics.csv") == (["step", "loss"], [{"step": "1", "loss": "0.7"}])


def test_numbers_that_json_has_no_word_for():
    values = [1, 0.5, "x", None, float("nan"), float("inf"), float("-inf")]
    assert [json_number(value) for value in values] == [1, 0.5, "x", None, "nan", "inf", "-inf"]
