"""The flags: spec 001's list, presence, booleans, and what a mistake is answered with."""

import copy
import dataclasses
import pickle
import re

import pytest

from eval import EvalArguments
from loader.command_line.parser import SYNONYMS, HyperArguments, argument_parser, help_text, parse_flags, parser_class
from loader.errors import ConfigError
from loader.schema.alias_flags import AliasFlags, TrackingFlags
from loader.schema.hyper_arguments import CommandArguments, SweepArguments
from loader.schema.keys import OPTIONAL_SECTIONS, component_module, keys_of, scalar_keys, shipped
from loader.sources.key_aliases import ALIASES
from prepare import PrepareArguments

HfArgumentParser = parser_class().__base__  # transformers' own, without the import of transformers
ADDED = {
    *("min_lr", "lr_decay_iters", "task_name", "training_config", "model_config"),
    *("resume_changed", "resume_schedule", "global_batch_size"),
}


def test_the_flags_are_exactly_the_documents(shared):
    text = next((shared / "specs").glob("001*")).read_text()
    section = text.split("### Command-line Suitable Parameters")[1].split("###")[0]
    named = {name for line in section.splitlines() if line.startswith("- ") for name in re.findall(r"`(\w+)`", line)}
    assert named == {field.name for field in dataclasses.fields(HyperArguments)} - ADDED


def test_no_arguments_means_nothing_given():
    assert HyperArguments().given == frozenset()
    assert parse_flags([])[0].given == frozenset()


def test_given_is_presence_not_a_comparison_with_the_default():
    assert HyperArguments(learning_rate=5e-5).given == {"learning_rate"}
    assert parse_flags(["--learning_rate", "5e-5"])[0].given == {"learning_rate"}
    assert HyperArguments("a_task").given == {"task_name"}


def test_given_survives_assignment_copies_and_pickles():
    hyper = HyperArguments(seed=1)
    hyper.max_steps = 7
    assert hyper.given == {"seed", "max_steps"}
    for twin in (copy.copy(hyper), copy.deepcopy(hyper), pickle.loads(pickle.dumps(hyper))):
        assert twin.given == hyper.given and twin == hyper


def test_a_caller_that_passes_all_fields_gives_those_that_differ_from_their_defaults():
    changed = dataclasses.replace(HyperArguments(seed=1), max_steps=7)
    assert changed.given == {"seed", "max_steps"}


def test_the_stock_parser_of_transformers_reads_the_flags():
    @dataclasses.dataclass
    class Others:
        gripper: str = "left"

    words = ["--learning-rate", "1e-3", "--policy", "act", "--no_do_eval", "--report_to", "none", "--gripper", "right"]
    parser = HfArgumentParser((HyperArguments, Others))
    hyper, others = parser.parse_args_into_dataclasses([*words, "--resume_from_checkpoint"])
    assert (hyper.learning_rate, hyper.model_config, hyper.do_eval, hyper.report_to) == (1e-3, "act", False, ["none"])
    assert (hyper.max_steps, hyper.resume_from_checkpoint, others.gripper) == (-1, "auto", "right")
    assert hyper.given == {"learning_rate", "model_config", "do_eval", "report_to", "resume_from_checkpoint"}
    assert "--resume_schedule" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--save_strategy", "sometimes"])


@pytest.mark.parametrize(
    "kind", [CommandArguments, SweepArguments, AliasFlags, TrackingFlags, PrepareArguments, EvalArguments]
)
def test_the_stock_parser_reads_the_other_flags(kind):
    assert HfArgumentParser(kind).parse_args_into_dataclasses([]) == (kind(),)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--do_eval"], True),
        (["--do_eval", "false"], False),
        (["--do_eval=true"], True),
        (["--no_do_eval"], False),
        (["--no-do-eval"], False),
        (["--no_remove_unused_columns"], None),
    ],
)
def test_booleans(arguments, value):
    hyper = parse_flags(arguments)[0]
    if value is None:
        assert hyper.given == {"remove_unused_columns"} and hyper.remove_unused_columns is False
    else:
        assert hyper.given == {"do_eval"} and hyper.do_eval is value


def test_spellings():
    hyper = parse_flags(
        ["--policy", "act", "--learning-rate=1e-3", "--report_to", "wandb", "tensorboard", "--max_steps", "-1"]
    )[0]
    assert (hyper.model_config, hyper.learning_rate, hyper.max_steps) == ("act", 1e-3, -1)
    assert hyper.report_to == ["wandb", "tensorboard"]
    assert parse_flags(["--resume_from_checkpoint"])[0].resume_from_checkpoint == "auto"


def test_folders_to_train_on_may_stand_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    given = parse_flags(["--check", "films", "--crop-size", "16"])
    assert given.command.check is True and given.aliases == {"train_dir": ["films"], "crop_size": 16}
    with pytest.raises(ConfigError, match="`32`"):
        parse_flags(["films", "--crop-size", "16", "32"])


def test_set_collects_over_several_uses():
    command = parse_flags(["--set", "a=1", "b=2", "--set", "c=3", "--check", "--print_config", "json"])[1]
    assert command.set == ["a=1", "b=2", "c=3"] and command.check and command.print_config == "json"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max_step", "5"], "unknown flag `--max_step`; did you mean `--max_steps`"),  # no prefix matching
        (["--lerning_rate", "1"], "did you mean `--learning_rate`"),
        (
            ["--lora_enable", "true"],
            "`lora_enable` is a process parameter: put it in YAML .* or use --set lora_enable=",
        ),
        (["--lora_r=4"], "is a process parameter"),
        (["mine.yaml"], "--training_config mine.yaml"),
        (["--model.hidden_dim", "3"], "is a process parameter"),
        (["--learning_rate", "fast"], "`--learning_rate`.*'fast'"),
        (["--save_strategy", "sometimes"], "`--save_strategy`.*'sometimes'.*'no', 'steps', 'epoch'"),
        (["stray"], "`stray` is not a flag"),
        (["--xyzzy"], "unknown flag `--xyzzy`"),
        (["--seed"], "`--seed`"),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    with pytest.raises(ConfigError, match=says) as raised:
        parse_flags(arguments)
    assert len(raised.value.problems) == 1 and "\n" not in raised.value.problems[0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--chunk_size", "10"], "--set dataset.chunk_size=10"),  # the model's too, which gets it from the data
        (["--kl-weight=2.5"], "--set model.kl_weight=2.5"),
        (["--label_smoothing", "0.1"], "--set loss.label_smoothing=0.1"),
        (["--device", "cpu"], "--set accelerator=cpu"),
        (["--workers", "4"], "--dataloader_num_workers 4"),
        (["--num_epochs", "3"], "--num_train_epochs 3"),
        (["--data_dir", "episodes"], "--set dataset.path=episodes"),
        (["--horizon"], "--set dataset.chunk_size=value"),
        (["--evaluation_strategy", "epoch"], "--set eval_strategy=epoch"),
        (["--max_seq_length", "512"], "--set dataset.block_size=512"),
        (["--group_by_length", "true"], "--set train_sampling_strategy=group_by_length"),
        (["--wandb_log=True"], "--report_to wandb"),
    ],
)
def test_where_the_key_of_an_unknown_flag_belongs(arguments, remedy):
    with pytest.raises(ConfigError) as raised:
        parse_flags(arguments)
    assert len(raised.value.problems) == 1 and raised.value.problems[0].endswith(f": {remedy}")


@pytest.mark.parametrize("flag", ["--devise", "--chunks", "--worker_count", "--rate", "--eval_itres_of_x"])
def test_no_hint_rather_than_a_wrong_one(flag):
    with pytest.raises(ConfigError) as raised:
        parse_flags([flag, "1"])
    assert "did you mean" not in str(raised.value) and "--set key=value" in str(raised.value)


def test_synonyms_stand_for_keys_that_exist():
    options = argument_parser()._option_string_actions
    for synonym, key in SYNONYMS.items():
        section, _, name = key.partition("=")[0].partition(".")
        known = {**scalar_keys(), **ALIASES}
        if name:
            kinds = [OPTIONAL_SECTIONS[section]] if section in OPTIONAL_SECTIONS else []
            kinds += [component_module(section, kind).Config for kind in shipped(section)] if not kinds else []
            known = {name for kind in kinds for name in keys_of(kind)}
        assert (name or section) in known and f"--{synonym}" not in options, synonym


def test_help_names_every_flag_and_its_default():
    text = help_text()
    for field in dataclasses.fields(HyperArguments):
        assert f"--{field.name} " in text
    assert "[5e-05]" in text and "(--policy)" in text and "default.yaml" in text


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("--lr 0.1", {"lr": 0.1}),
        ("--epochs 2", {"epochs": 2.0}),
        ("--batch-size 4", {"batch_size": 4}),
        ("--batch-size=4", {"batch_size": 4}),
        ("--n-layer 3", {"n_layer": 3}),
    ],
)
def test_short_names_and_hyphens(line, flags):
    assert parse_flags(line.split()).aliases == flags


def test_hyphens_may_be_mixed_with_underscores():
    given = parse_flags(["--per_device-train_batch-size", "4", "--learning-rate=0.5"]).hyper
    assert (given.per_device_train_batch_size, given.learning_rate) == (4, 0.5)


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("model.n-layer=3", ["model.n_layer=3"]),
        ("optimizer=adafactor +ema.decay=0.9 ++seed=3", ["optimizer=adafactor", "ema.decay=0.9", "seed=3"]),
        ("--check seed=3", ["seed=3"]),
        ("seed=1 --set seed=2 max_steps=3 --check", ["seed=2", "max_steps=3", "seed=1"]),
        ("--set seed=2 --no_do_eval seed=3", ["seed=2", "seed=3"]),
        ("--report_to none seed=3", ["seed=3"]),
        ("callbacks=[{name: a.b}]", ["callbacks=[{name: a.b}]"]),
    ],
)
def test_bare_words_are_settings(line, settings):
    words = line.split() if "[" not in line else [line]
    assert parse_flags(words).command.set == settings


def test_a_flags_value_may_look_like_a_setting():
    given = parse_flags(["--output_dir", "a=b", "--task_name=x=y"])
    assert (given.hyper.output_dir, given.hyper.task_name, given.command.set) == ("a=b", "x=y", [])


@pytest.mark.parametrize("word", ["seed", "=3", "3=4", "--sed=3", "~seed=3"])
def test_other_bare_words_are_refused(word):
    with pytest.raises(ConfigError) as error:
        parse_flags([word])
    assert word.partition("=")[0] in error.value.problems[0]
