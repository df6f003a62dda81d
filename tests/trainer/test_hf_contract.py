"""Keel's overrides and patches against the installed transformers and accelerate: names and signatures agree."""

import inspect

import accelerate.utils.imports
import pytest
import torch
import transformers
import transformers.trainer
from transformers.trainer_callback import CallbackHandler

from trainer.hf_overrides import HFOverrides
from trainer.hf_patches import FIRST_VALUES
from trainer.trainer import Trainer

OWN_CLASSES = [kind for kind in Trainer.__mro__ if kind.__module__.startswith("trainer.")]
STOCK = vars(transformers.Trainer)
EXTENDED = ("__init__", "train")  # methods of our own public interface that extend transformers'
OVERRIDES = [name for name, value in vars(HFOverrides).items() if inspect.isfunction(value)]


def parameters(function):
    return {name: value for name, value in inspect.signature(function).parameters.items() if name != "self"}


def test_every_override_is_in_the_module_of_overrides():
    elsewhere = {
        (kind.__name__, name)
        for kind in OWN_CLASSES
        if kind is not HFOverrides
        for name in vars(kind)
        if name in STOCK and name not in EXTENDED and not (name.startswith("__") and name.endswith("__"))
    }
    assert elsewhere == set()


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_has_the_name_and_the_parameters_of_the_installed_method(name):
    assert name in STOCK, f"transformers {transformers.__version__} no longer calls `{name}`"
    ours, theirs = parameters(vars(HFOverrides)[name]), parameters(STOCK[name])
    takes_more = {value.kind for value in ours.values()} & {inspect.Parameter.VAR_KEYWORD}
    named = [n for n, value in ours.items() if value.kind not in (value.VAR_KEYWORD, value.VAR_POSITIONAL)]
    assert set(named) <= set(theirs)
    if not takes_more:
        assert named == list(theirs)
    for parameter in named:
        assert ours[parameter].default == theirs[parameter].default, parameter


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_says_what_would_go_wrong_without_it(name):
    assert "Without it:" in inspect.getdoc(vars(HFOverrides)[name])


@pytest.mark.parametrize(
    ("holder", "name", "expected"),
    [
        (transformers.trainer, "skip_first_batches", ["dataloader", "num_batches"]),
        (transformers.trainer, "compare_trainer_and_checkpoint_args", ["training_args", "trainer_state"]),
        (CallbackHandler, "on_save", ["self", "args", "state", "control", "kwargs"]),
        (CallbackHandler, "on_evaluate", ["self", "args", "state", "control", "metrics", "kwargs"]),
        (transformers.trainer, "sort_checkpoints", ["output_dir"]),
        *((torch.nn.init, name, ["tensor"]) for name in FIRST_VALUES),
        (torch.nn.Module, "_apply", ["self", "fn", "recurse"]),
        (transformers.trainer, "is_peft_available", []),
        (transformers.trainer_utils, "is_peft_available", []),
    ],
)
def test_a_patched_function_has_the_parameters_that_its_patch_takes(holder, name, expected):
    actual = list(inspect.signature(getattr(holder, name)).parameters)
    assert actual[: len(expected)] == expected or "kwargs" in expected and actual == expected[:-1]


def test_other_patched_names_exist():
    assert callable(accelerate.utils.imports._is_package_available)
    assert hasattr(transformers.TrainingArguments, "n_gpu")
    assert "_n_gpu" in inspect.getsource(transformers.TrainingArguments.n_gpu.fget)


def test_the_contract_notices_a_method_that_is_gone_and_another_parameter(monkeypatch):
    assert len(OVERRIDES) > 30 and sum(name.startswith("_") for name in OVERRIDES) > 15
    check = test_an_override_has_the_name_and_the_parameters_of_the_installed_method
    monkeypatch.setattr(HFOverrides, "_clip_gradients", lambda self, model: None, raising=False)
    with pytest.raises((AssertionError, KeyError)):
        check("_clip_gradients")
    monkeypatch.setattr(HFOverrides, "_clip_grad_norm", lambda self, network: None)
    with pytest.raises(AssertionError):
        check("_clip_grad_norm")
