"""Every field of `TrainingArguments` that Keel leaves to transformers, from YAML into the object it is for."""

import dataclasses
import json
import os
import typing

import pytest
import yaml
from transformers import TrainingArguments

from loader.checks.static_checks import check_run
from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError
from loader.output.training_arguments import argument_values, training_arguments
from loader.resolve.resolver import resolve
from loader.schema.keys import REPLACED, keys_of, scalar_keys
from loader.schema.process_arguments import ProcessArguments

OWN = {*keys_of(HyperArguments), *keys_of(ProcessArguments)}
PASSED = [name for name in scalar_keys() if name not in OWN and name not in REPLACED]

# What to write where the type alone does not say it: (YAML value, what else must be set for it to be accepted).
VALUES = {
    "activation_checkpointing": (True, {}),
    "gradient_checkpointing": (True, {}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {}),
    "optim_args": ("rank=4", {}),
    "optim_target_modules": (["head"], {}),
    "torch_compile_backend": ("eager", {}),
    "torch_compile_mode": ("default", {}),
    "log_level": ("error", {}),
    "log_level_replica": ("error", {}),
    "disable_tqdm": (True, {}),
    "eval_strategy": ("epoch", {}),
    "eval_delay": (3.0, {}),
    "hub_strategy": ("end", {"push_to_hub": True}),
    "liger_kernel_config": ({"rope": True}, {"use_liger_kernel": True}),
    "load_best_model_at_end": (True, {"eval_strategy": "steps", "metric_for_best_model": "loss"}),
    "metric_for_best_model": ("eval_loss", {}),
    "greater_is_better": (True, {"metric_for_best_model": "loss"}),
    "gradient_checkpointing_kwargs": ({"use_reentrant": True}, {"gradient_checkpointing": True}),
    "activation_checkpointing_kwargs": ({"use_reentrant": True}, {"activation_checkpointing": True}),
    "run_name": ("first", {"report_to": "tensorboard"}),
    "project": ("one", {"report_to": "trackio"}),
    "trackio_space_id": ("someone/somewhere", {"report_to": "trackio"}),
    "trackio_bucket_id": ("someone/somewhere", {"report_to": "trackio"}),
    "hub_private_repo": (True, {"push_to_hub": True}),
    "hub_model_id": ("someone/something", {"push_to_hub": True}),
    "hub_always_push": (True, {"push_to_hub": True}),
    "hub_revision": ("other", {"push_to_hub": True}),
    "accelerator_config": ({"even_batches": False}, {}),
    "dataloader_persistent_workers": (True, {"dataloader_num_workers": 1}),
    "dataloader_prefetch_factor": (3, {"dataloader_num_workers": 1}),
    "dataloader_multiprocessing_context": ("spawn", {"dataloader_num_workers": 1}),
    "ddp_backend": ("gloo", {}),
    "ddp_timeout": (60, {}),
    "debug": ("underflow_overflow", {}),
    "trackio_static_space_id": ("someone/somewhere", {"report_to": "trackio"}),
    "deepspeed": ({"train_batch_size": "auto"}, {}),
    "fsdp_config": ({"min_num_params": 5}, {"fsdp": True}),
}
# Building the object with these would need what a test machine need not have.
NEEDS = {
    "tf32": "a GPU with TensorFloat-32",
    "fp16": "a GPU",
    "ddp_backend": "several processes",
    "deepspeed": "the package deepspeed",
    "fsdp": "several processes",
    "fsdp_config": "several processes",
    "push_to_hub": "a network",
}


@pytest.fixture(autouse=True)
def own_environment():
    """What TrainingArguments write into the environment stays in the test."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def another_value(name):
    """A value that is not the default."""
    if name in VALUES:
        return VALUES[name][0]
    key = scalar_keys()[name]
    kinds = {key.annotation, *typing.get_args(key.annotation)}
    if bool in kinds:
        return not key.default
    for kind, value in ((int, (key.default or 0) + 7 if not isinstance(key.default, str) else 7), (float, 0.75)):
        if kind in kinds:
            return value
    assert str in kinds, f"say in VALUES what `{name}` could be set to"
    return "another"


def resolved(tmp_path, name):
    more = VALUES.get(name, (None, {}))[1]
    file = tmp_path / "training.yaml"
    file.write_text(yaml.safe_dump({name: another_value(name), **more}))
    return resolve(HyperArguments(training_config=str(file), output_dir=str(tmp_path / "out")))


def as_written(value):
    """The word of an enumeration, the fields of a dataclass."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_written(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [as_written(each) for each in value]
    return getattr(value, "value", value)


def arrived(found, wanted):
    found = as_written(found)
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(name in found and arrived(found[name], each) for name, each in wanted.items())
    return found == wanted or found == [wanted]


@pytest.mark.parametrize("name", PASSED)
def test_every_field_of_training_arguments_arrives(in_root, tmp_path, name):
    wanted = another_value(name)
    assert wanted != scalar_keys()[name].default
    run = resolved(tmp_path, name)
    values = argument_values(run)
    # Newer versions warn at the old name of the two checkpointing fields, so the new one carries it.
    home = name if name in values else name.replace("gradient_checkpointing", "activation_checkpointing")
    assert values[home] == wanted
    if name in NEEDS:
        return
    built = training_arguments(run)
    assert isinstance(built, TrainingArguments) and arrived(getattr(built, home), wanted)


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_what_this_machine_may_lack_is_built_or_refused(in_root, tmp_path, name):
    """One of two: the value arrives, or one line says that it is refused."""
    if name not in PASSED:
        pytest.skip("another version of transformers")
    try:
        built = training_arguments(resolved(tmp_path, name))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert arrived(getattr(built, name), another_value(name))


@pytest.mark.slow
def test_a_mapping_may_be_written_as_json_text(in_root):
    """As transformers takes it; what is recorded and compared is the mapping."""
    texts = {
        "lr_scheduler_kwargs": "num_cycles",
        "gradient_checkpointing_kwargs": "use_reentrant",
        "accelerator_config": "x",
    }
    for name, key in texts.items():
        run = resolve(settings=["gradient_checkpointing=true", f"{name}='{json.dumps({key: 2})}'"])
        assert run.trainer[name] == {key: 2} and run.place(f"{name}.{key}") == " in --set"
    assert resolve(settings=["accelerator_config=some/file.json"]).trainer["accelerator_config"] == "some/file.json"


@pytest.mark.parametrize(
    "setting",
    [
        "lr_scheduler_kwargs=abc", "lr_scheduler_kwargs='{\"a\": '", "lr_scheduler_kwargs='[1]'",
        "gradient_checkpointing_kwargs=true.json", "accelerator_config='{a'", "activation_checkpointing_kwargs=''",
    ],
)  # fmt: skip
def test_text_that_is_no_mapping_is_refused(in_root, setting):
    name = setting.partition("_kwargs=")[0]
    if setting.partition("=")[0] not in scalar_keys():
        pytest.skip("the installed transformers has no such field")
    switches = [f"{name}=true"] if name in scalar_keys() else []
    with pytest.raises(ConfigError) as refused:
        resolve(settings=[*switches, setting])
    (line,) = refused.value.problems
    assert line.startswith(f"`{setting.split('=')[0]}: ") and "in --set must be a mapping, as in {name: value}" in line


@pytest.mark.slow
def test_arguments_of_an_optimizer_are_pairs(in_root, tmp_path):
    for wrong, word in (("3", "3"), ("a=1, b", "b"), ("a=", "a=")):
        problems = check_run(resolve(settings=[f"output_dir={tmp_path}", f"optim_args='{wrong}'"]))
        (line,) = (problem for problem in problems if "optim_args" in problem)
        assert f"`{word}` is not of the form name=value" in line
