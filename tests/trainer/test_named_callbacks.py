"""Callbacks by import path: what is built, and each way in which it can fail told apart."""

import sys

import pytest
from tiny_training import make_trainer

from trainer.callbacks.user_callbacks import named_callbacks

SOURCE = """
from transformers import TrainerCallback

class Counts(TrainerCallback):
    def __init__(self, start=0, *, step=1):
        self.count, self.step = start, step

    def on_step_end(self, args, state, control, **kwargs):
        self.count += self.step

class Needs(TrainerCallback):
    def __init__(self, path):
        self.path = path

class TakesAny(TrainerCallback):
    def __init__(self, **options):
        self.options = options

class Refuses(TrainerCallback):
    def __init__(self, size=0):
        raise RuntimeError("no size\\nlike that")

class Stranger:
    pass

instance = Counts()
"""


@pytest.fixture(autouse=True)
def my_lab(tmp_path, monkeypatch):
    package = tmp_path / "my_lab_of_callbacks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "callbacks.py").write_text(SOURCE)
    (package / "needy.py").write_text("import a_package_of_nobody\n")
    (package / "broken.py").write_text("1 / 0\n")
    (package / "torn.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [module for module in sys.modules if module.startswith("my_lab_of_callbacks")]:
        del sys.modules[name]


PATH = "my_lab_of_callbacks.callbacks"


@pytest.mark.slow
def test_they_are_built_in_order_and_run(tmp_path):
    callbacks = named_callbacks(
        [f"{PATH}.Counts", {"name": f"{PATH}.Counts", "start": 10, "step": 2}, {"name": f"{PATH}.TakesAny", "x": 1}]
    )
    trainer = make_trainer(tmp_path / "out", max_steps=3)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    assert [each.count for each in callbacks[:2]] == [3, 16] and callbacks[2].options == {"x": 1}


def test_nothing_is_asked_for():
    assert named_callbacks(None) == named_callbacks([]) == []


def test_entries_are_left_as_they_are():
    entry = {"name": f"{PATH}.Counts", "start": 1}
    named_callbacks([entry])
    assert entry == {"name": f"{PATH}.Counts", "start": 1}


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("Counts", ("name",)),
        ({"start": 1}, ("name",)),
        ("my_lab_of_callback.callbacks.Counts", ("my_lab_of_callback", "PYTHONPATH")),
        ("my_lab_of_callbacks.calbacks.Counts", ("my_lab_of_callbacks.calbacks", "PYTHONPATH")),
        ("my_lab_of_callbacks.needy.Counts", ("my_lab_of_callbacks.needy", "a_package_of_nobody")),
        ("my_lab_of_callbacks.broken.Counts", ("my_lab_of_callbacks.broken", "ZeroDivisionError")),
        ("my_lab_of_callbacks.torn.Counts", ("my_lab_of_callbacks.torn", "SyntaxError")),
        (f"{PATH}.Count", (f"{PATH}.Count", "`Counts`")),
        (f"{PATH}.Stranger", (f"{PATH}.Stranger", "TrainerCallback")),
        (f"{PATH}.instance", (f"{PATH}.instance", "TrainerCallback")),
        ({"name": f"{PATH}.Counts", "stat": 1}, (f"{PATH}.Counts", "'stat'")),
        (f"{PATH}.Needs", (f"{PATH}.Needs", "'path'")),
        (f"{PATH}.Refuses", (f"{PATH}.Refuses", "RuntimeError: no size like that")),
    ],
)
def test_each_failure_is_one_line(entry, names):
    with pytest.raises(ValueError) as raised:
        named_callbacks([f"{PATH}.Counts", entry])
    line = str(raised.value)
    assert line.startswith("`callbacks[1]`") and "\n" not in line and all(name in line for name in names)
    assert ("PYTHONPATH" in line) == ("PYTHONPATH" in names)
