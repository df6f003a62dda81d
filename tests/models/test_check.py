"""The contract of a network module, checked by `train.py` before the first step and by `python -m models.check`."""

import sys

import pytest
from small_runs import SmallRuns

import models.check
import train
from loader.command_line.entry import command_line, import_from_working_folder

HEAD = """
from dataclasses import dataclass

from storage.config_keys import key

PROCESS_KEYS = frozenset()


@dataclass
class Config:
    width: int = key(3, "of the layer", ge=1)
    action_dim: int | None = key(None, "of the data")
"""
GOOD = """

def build(config, process):
    from {name}_network import Net, NetConfig

    return Net(NetConfig(width=config.width))


def load(folder):
    from {name}_network import Net

    return Net.from_pretrained(folder)
"""
NETWORK = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class NetConfig(PreTrainedConfig):
    model_type = "{name}"

    def __init__(self, width=3, **values):
        self.width = width
        super().__init__(**values)


class Net(PreTrainedModel):
    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(2, config.width)
        self.post_init()
"""
PLAIN = """

def build(config, process):
    from torch import nn

    return nn.Linear(2, config.width)


def load(folder):
    return None
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a package `lab_<test>` with a module and its network; returns the module's dotted name."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(module, name):
        (tmp_path / f"{name}.py").write_text(HEAD + module.format(name=name))
        (tmp_path / f"{name}_network.py").write_text(NETWORK.format(name=name))
        return name

    return written


@pytest.mark.parametrize(
    ("name", "module", "settings", "part"),
    [
        ("good_net", GOOD, ["width=5"], None),
        ("plain_net", PLAIN, [], "save_pretrained"),
        ("no_load", GOOD.split("def load")[0], [], "load(folder)"),
        ("one_argument", GOOD.replace("build(config, process)", "build(config)"), [], "build(config, process)"),
        ("loads_another", GOOD.replace("from_pretrained(folder)", "from_pretrained(folder).apply(lambda m: hasattr(m, "
            "'weight') and m.weight.data.zero_())"), [], "layer.weight"),
        ("returns_none", GOOD.replace("return Net(NetConfig(width=config.width))", "return None"), [], "NoneType"),
        ("unknown_key", GOOD, ["widht=5"], "widht"),
        ("no_config", "\nConfig = None\n" + GOOD, [], "Config"),
    ],
)  # fmt: skip
def test_models_check(name, module, settings, part, write, capsys):
    code = models.check.main([write(module, name), *settings])
    out, err = capsys.readouterr()
    assert code == (0 if part is None else 2)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert (len(out.splitlines()), len(errors)) == ((1, 0) if part is None else (0, 1))
    assert part is None or part in err
    assert part is not None or f"{2 * 5 + 5} parameters" in out


def test_a_module_that_does_not_exist_is_one_line(capsys):
    assert models.check.main(["my_lab.nothing"]) == 2
    assert "my_lab" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("lab_plain.net", PLAIN, ["save_pretrained"]),
        ("lab_no_load.net", GOOD.split("def load")[0], ["load(folder)", "task.yaml"]),
        ("lab_one.net", GOOD.replace("build(config, process)", "build(config)"), ["build(config)", "task.yaml"]),
    ],
)
def test_training_refuses_a_network_that_it_could_not_save(name, module, words, tmp_path, monkeypatch, capsys):
    file = tmp_path / f"{name.replace('.', '/')}.py"
    file.parent.mkdir()
    file.write_text(HEAD + module.format(name="lab"))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)  # the working folder is on the import path
    runs = SmallRuns(tmp_path)
    base = (tmp_path / "base.yaml").read_text()
    without_model = base.replace("model_config: mlp\nmodel: {hidden_dim: 8, hidden_layers: 1}\n", "")
    (tmp_path / "base.yaml").write_text(without_model)
    with (tmp_path / "task.yaml").open("a") as task:
        task.write(f"model: {{name: {name}}}\n")
    with pytest.raises(SystemExit) as left:
        command_line(train.main, runs.words())
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert left.value.code == 2 and len(errors) == 1 and all(word in errors[0] for word in words)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_not_put_on_the_import_path(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "run.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    import_from_working_folder()
    assert str(tmp_path) not in sys.path
