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
    ("entry", "message"),
    [
        ("Counts", "must be an import path like my_lab.callbacks.Foo, or a mapping with it as `name`"),
        ({"start": 1}, "must be an import path like"),
        (
            "my_lab_of_callback.callbacks.Counts",
            "there is no module `my_lab_of_callback`; did you mean `my_lab_of_callbacks`?",
        ),
        (
            "my_lab_of_callbacks.calbacks.Counts",
            "there is no module `my_lab_of_callbacks.calbacks`; did you mean `my_lab_of_callbacks.callbacks`?",
        ),
        ("qqzzxxvv.Counts", "there is no module `qqzzxxvv`; is its folder on PYTHONPATH?"),
        (
            "my_lab_of_callbacks.needy.Counts",
            "importing my_lab_of_callbacks.needy failed: ModuleNotFoundError: No module named 'a_package_of_nobody'",
        ),
        (
            "my_lab_of_callbacks.broken.Counts",
            "importing my_lab_of_callbacks.broken failed: ZeroDivisionError: division by zero",
        ),
        ("my_lab_of_callbacks.torn.Counts", "importing my_lab_of_callbacks.torn failed: SyntaxError: "),
        (f"{PATH}.Count", f"{PATH} has no `Count`; did you mean `Counts`?"),
        (
            f"{PATH}.Zzz",
            f"{PATH} has no `Zzz`; its callbacks: Counts, Needs, TakesAny, Refuses",
        ),
        (f"{PATH}.Stranger", f"{PATH}.Stranger is not a TrainerCallback of transformers; derive it from that class"),
        (f"{PATH}.instance", f"{PATH}.instance is not a TrainerCallback of transformers"),
        ({"name": f"{PATH}.Counts", "stat": 1}, f"{PATH}.Counts takes no argument `stat`; did you mean `start`?"),
        ({"name": f"{PATH}.Counts", "q": 1}, f"{PATH}.Counts takes no argument `q`; it takes start, step"),
        (f"{PATH}.Needs", f"{PATH}.Needs needs the argument `path`; write it beside `name`"),
        (f"{PATH}.Refuses", f"{PATH}.Refuses cannot be built: RuntimeError: no size like that"),
    ],
)
def test_failures_are_told_apart(entry, message):
    with pytest.raises(ValueError) as error:
        named_callbacks([f"{PATH}.Counts", entry])
    assert str(error.value).startswith("`callbacks[1]`") and message in str(error.value)
    assert "\n" not in str(error.value)
