"""Parse the command line: flags, `--set`, and Hydra's bare words."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

from loader.errors import ConfigError
from loader.schema.alias_flags import ALIAS_FLAGS, AliasFlags, TrackingFlags
from loader.schema.hyper_arguments import FLAG_GROUPS, CommandArguments, HyperArguments, SweepArguments
from loader.schema.installed import transformers_folder
from loader.schema.keys import section_of
from storage.config_keys import default_of
from storage.suggestions import nearest

# A bare word that means `--set`; Hydra's `+` and `++` for new keys have no meaning of their own here.
SETTING = re.compile(r"\+{0,2}(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)


@cache
def _hf_argument_parser() -> type[argparse.ArgumentParser]:
    """transformers' HfArgumentParser, loaded from its own file: the package's import would cost seconds."""
    loaded = sys.modules.get("transformers.hf_argparser")
    if loaded is None:
        path = transformers_folder() / "hf_argparser.py"
        spec = importlib.util.spec_from_file_location("_hf_argparser", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return loaded.HfArgumentParser


@cache
def parser_class() -> type[argparse.ArgumentParser]:
    class KeelArgumentParser(_hf_argument_parser()):
        """HfArgumentParser that leaves out flags that were not given, and raises one-line errors."""

        def error(self, message: str) -> None:
            raise ConfigError(_friendly(message))

        @staticmethod
        def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
            before = set(map(id, parser._actions))
            _hf_argument_parser()._parse_dataclass_field(parser, field)
            for action in parser._actions:
                if id(action) not in before:
                    action.default = argparse.SUPPRESS
                    if field.type == bool | None:
                        action.nargs, action.const = "?", True
            if (field.type is bool and field.default is False) or field.type == bool | None:
                hyphens = field.name.replace("_", "-")
                parser.add_argument(
                    f"--no_{field.name}",
                    f"--no-{hyphens}",
                    action="store_false",
                    dest=field.name,
                    default=argparse.SUPPRESS,
                )

    return KeelArgumentParser


@cache
def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of train.py's flags, without prefix matching."""
    kinds = (HyperArguments, CommandArguments, SweepArguments, *ALIAS_FLAGS)
    parser = parser_class()(kinds, allow_abbrev=False, prog="train.py", add_help=False)
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    return parser


class Given(NamedTuple):
    """A parsed command line: hyper flags, command, sweep, alias flags, and whether `--help` was given."""

    hyper: HyperArguments
    command: CommandArguments
    sweep: SweepArguments
    aliases: dict[str, Any]
    asked_for_help: bool


def parse_flags(arguments: list[str] | None = None) -> Given:
    """Parse the command line into what was given.

    Raises:
        ConfigError: an unknown flag (with the nearest one, or where the key belongs), or a value of the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    flags, settings = split_settings(arguments)
    namespace, unknown = argument_parser().parse_known_args(flags)
    given = vars(namespace)
    if unknown and all(os.path.isdir(os.path.expanduser(word)) for word in unknown):
        given["train_dir"] = unknown  # `train.py DIR`
    elif unknown:
        strange = [word for word in unknown if word.startswith("-") or not os.path.isdir(os.path.expanduser(word))]
        raise ConfigError(explain_unknown(strange, argument_parser()._option_string_actions))
    if settings:
        given["set"] = [*given.get("set", ()), *settings]
    asked_for_help = given.pop("help", False)
    kinds = (HyperArguments, CommandArguments, SweepArguments)
    names = {kind: {field.name for field in dataclasses.fields(kind)} for kind in kinds}
    parsed = [kind(**{name: given.pop(name) for name in fields & given.keys()}) for kind, fields in names.items()]
    return Given(*parsed, given, asked_for_help)


def _with_underscores(word: str) -> str:
    """`--batch-size=4` as `--batch_size=4`, where such a flag exists."""
    flag, equals, value = word.partition("=")
    written = "--" + flag.removeprefix("--").replace("-", "_")
    is_known = flag.startswith("--") and written in argument_parser()._option_string_actions
    return f"{written}{equals}{value}" if is_known else word


def split_settings(words: list[str]) -> tuple[list[str], list[str]]:
    """Split Hydra's bare words (`key=value`, `group=name`, `+key=value`) from the flags and their values."""
    options, flags, settings = argument_parser()._option_string_actions, [], []
    words = [_with_underscores(word) for word in words]
    takes_next = takes_all = False  # the flag before takes this word, whatever it looks like
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        match = None if takes_next or takes_all else SETTING.fullmatch(word)
        if match:
            settings.append(f"{match['key'].replace('-', '_')}={match['value']}")
            continue
        action = options.get(word)
        is_switch = action is not None and action.const is True
        flags.append(f"{word}=true" if is_switch and os.path.isdir(os.path.expanduser(following)) else word)
        takes_next = action is not None and action.nargs is None
        takes_all = (takes_all and not word.startswith("--")) or word == "--set"
    return flags, settings


def flag_lines(kind: type, names: list[str] | None = None) -> list[str]:
    """Return one help line for each flag: name, meaning, default, alias."""
    lines = []
    for field in dataclasses.fields(kind):
        if names is not None and field.name not in names:
            continue
        default = default_of(field)
        default = " ".join(default) if isinstance(default, list) else default
        shown = "" if default in (None, "") else f" [{str(default).lower() if isinstance(default, bool) else default}]"
        alias = f" ({field.metadata['aliases'][0]})" if "aliases" in field.metadata else ""
        alias += f" (= {field.metadata['path']})" if field.metadata.get("path") not in (None, field.name) else ""
        lines.append(f"  --{field.name:<28} {field.metadata['help']}{shown}{alias}")
    return lines


def _friendly(message: str) -> str:
    """Rewrite argparse's message: flag, value, what it takes."""
    message = message.removeprefix("argument ")
    flags, colon, rest = message.partition(": ")
    if not colon or not flags.startswith("-"):
        return message
    return f"flag `{flags.split('/')[0]}`: {rest}"


def help_text() -> str:
    """Return the text of `--help`: the flags in groups with their defaults, and where the other keys are documented."""
    lines = [
        "usage: python train.py [--task_name TASK] [--training_config FILE] [--flag value …] [--set key.path=value …]",
        "",
        "Trains a model on a task. What changes from run to run is a flag; what is stable lives in YAML.",
        "A flag beats YAML, --set beats a flag. Booleans: --do_eval, --do_eval false, --no_do_eval.",
        "Bare words key.path=value, group=name and +key=value mean the same as after --set.",
        "With -m, a bare word key=a,b has several values: each combination is a run, in OUTPUT_DIR/0, OUTPUT_DIR/1 …",
    ]
    names = [field.name for field in dataclasses.fields(HyperArguments)]
    for title, (first, last) in FLAG_GROUPS.items():
        lines += ["", f"{title}:", *flag_lines(HyperArguments, names[names.index(first) : names.index(last) + 1])]
    lines += ["", "aliases of language-model scripts; with --dataset and no task, text is trained on:"]
    lines += flag_lines(AliasFlags)
    lines += ["", "tracking: python train.py --task_name tracking DIR …, also with --epochs and --lr:"]
    lines += [*flag_lines(TrackingFlags), "", "instead of training, and single overrides:"]
    lines += flag_lines(CommandArguments)
    lines += ["", "sweeps, see docs/sweeps.md:", *flag_lines(SweepArguments)]
    lines += [
        "",
        "Process parameters (data processing, LoRA, quantization, freezing, …) with their comments:",
        "  configs/training/default.yaml    every key: --print_schema    the merged result: --print_config",
        "Any field of the installed transformers.TrainingArguments is a YAML key too.",
        "Exit codes: 0 done, 1 crashed, 2 configuration or input error, 75 preempted (run the same line again).",
    ]
    return "\n".join(lines)


# ---- flags that do not exist: where the key belongs, or which flag is meant ----

FLAG_CUTOFF = 0.8  # similarity from which a flag is taken for a misspelt one
BELONGS_TO = {"dataset": "the data", "model": "the model", "loss": "the loss", "env": "the environment"}
# Flags of other programs -> the key that means the same here, or the key and its value.
SYNONYMS = {
    **dict.fromkeys(("device", "use_gpu", "cuda"), "accelerator"),
    **dict.fromkeys(("gpu", "gpus", "n_gpus", "num_gpus"), "devices"),
    **dict.fromkeys(("workers", "num_workers", "n_workers"), "dataloader_num_workers"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "train_steps", "num_train_steps"), "max_steps"),
    **dict.fromkeys(("n_epochs", "num_epochs", "train_epochs"), "num_train_epochs"),
    **dict.fromkeys(("bs", "batch", "train_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("eval_batch_size", "val_batch_size"), "per_device_eval_batch_size"),
    **dict.fromkeys(("eval_freq", "eval_every", "val_interval", "val_every"), "eval_steps"),
    **dict.fromkeys(("save_freq", "save_every", "save_interval", "checkpoint_interval"), "save_steps"),
    **dict.fromkeys(("log_freq", "log_every", "log_steps"), "logging_steps"),
    **dict.fromkeys(("resume", "resume_from", "checkpoint"), "resume_from_checkpoint"),
    **dict.fromkeys(("config", "config_file", "recipe"), "training_config"),
    **dict.fromkeys(("task", "env"), "task_name"),
    **dict.fromkeys(("out", "output", "save_dir", "log_dir"), "output_dir"),
    **dict.fromkeys(("wd", "l2"), "weight_decay"),
    **dict.fromkeys(("clip", "clip_grad", "gradient_clip"), "max_grad_norm"),
    **dict.fromkeys(("accumulate", "grad_accum", "accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("logger",), "report_to"),
    **dict.fromkeys(("use_wandb", "wandb", "wandb_log"), "report_to=wandb"),
    "wandb_project": "logging.project",
    **dict.fromkeys(("wandb_run_name", "wandb_name", "experiment_name"), "run_name"),
    "evaluation_strategy": "eval_strategy",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_length", "seq_len", "seq_length"), "dataset.block_size"),
    "group_by_length": "train_sampling_strategy=group_by_length",
    **dict.fromkeys(("data", "data_dir", "data_path", "dataset_path", "dataset_dir"), "dataset.path"),
    **dict.fromkeys(("chunk_len", "action_chunk", "horizon", "action_horizon"), "dataset.chunk_size"),
    **dict.fromkeys(("val_split", "val_fraction", "val_ratio"), "dataset.eval_fraction"),
}


def explain_unknown(words: list[str], options: Collection[str]) -> list[str]:
    """One line for each unknown flag.

    Args:
        words: What the parser did not understand: flags, and the values after them.
        options: All flags that exist.
    """
    lines = []
    for position, word in enumerate(words):
        if not word.startswith("-"):
            if not lines:
                is_file = word.endswith((".yaml", ".yml"))
                remedy = (
                    f"name the file by --training_config {word}"
                    if is_file
                    else "flags are written --name value; nor is it a folder to train on"
                )
                lines.append(f"`{word}` is not a flag; {remedy}")
            continue
        flag, equals, value = word.partition("=")
        if not equals and position + 1 < len(words) and not words[position + 1].startswith("--"):
            value = words[position + 1]
        remedy = _remedy(flag.lstrip("-").replace("-", "_"), value or "value", options)
        lines.append(f"unknown flag `{flag}`{remedy or '; --help lists the flags, --set key=value sets any YAML key'}")
    return lines


def _remedy(key: str, value: str, options: Collection[str]) -> str:
    """Where a key belongs, or the flag that is meant; empty if neither is known."""
    from loader.sources.key_aliases import yaml_keys  # only errors need it, and it imports the reader of YAML

    synonym = SYNONYMS.get(key)
    if synonym is not None:
        synonym, equals, meant = synonym.partition("=")
        value = meant if equals else value
        written = f"--{synonym} {value}" if f"--{synonym}" in options else f"--set {synonym}={value}"
        return f": the key is `{synonym}`: {written}"
    for known in (key, key.removeprefix("no_")):
        if known.split(".")[0] in yaml_keys():
            return (
                f": `{known}` is a process parameter: put it in YAML (`{known}: …` in the file given to "
                f"--training_config) or use --set {known}=value"
            )
    if section := section_of(key):
        return f": `{key}` belongs to {BELONGS_TO[section]}: --set {section}.{key}={value}"
    return nearest_flag(key, options)


def nearest_flag(key: str, options: Collection[str]) -> str:
    """`; did you mean …?` for a misspelt flag; empty if none is similar enough."""
    near = nearest(key.lstrip("-").replace("-", "_"), [option.lstrip("-") for option in options], FLAG_CUTOFF)
    return f"; did you mean `--{near}`?" if near else ""
