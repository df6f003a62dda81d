"""The flags: `HyperArguments`, what changes from run to run. Everything else lives in YAML."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from loader.errors import ConfigError, did_you_mean

BOUNDS = ("ge", "gt", "le", "lt")
NOT_OF_ARGPARSE = (*BOUNDS, "path")  # `path`: see words.py


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text and, in `metadata`, bounds (`ge`, `gt`, `le`, `lt`) and `aliases`."""
    metadata["help"] = help
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class RemembersGiven:
    """Knows which fields were passed or assigned: «given» is presence, never a comparison with the default."""

    given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any):
        self = super().__new__(cls)
        names = [each.name for each in dataclasses.fields(cls)]
        object.__setattr__(self, "given", frozenset(names[: len(args)]) | frozenset(kwargs))
        object.__setattr__(self, "_built", False)
        return self

    def __post_init__(self) -> None:
        object.__setattr__(self, "_built", True)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if self._built:
            object.__setattr__(self, "given", self.given | {name})

    def __getnewargs_ex__(self):  # copy and pickle rebuild through __new__: hand over what was given
        return (), {name: getattr(self, name) for name in self.given}


@dataclass
class HyperArguments(RemembersGiven):
    """What changes from run to run. A field that is not given leaves the word to YAML.

    `HyperArguments(learning_rate=5e-5)` counts as given although 5e-5 is the default, and beats YAML.
    """

    # What to run
    task_name: str = flag(
        "sim_transfer_cube_state", "Task: a file in configs/task/ (its data and environment), or a path."
    )
    training_config: str | None = flag(None, "Training YAML: a file in configs/training/, or a path.")
    model_config: str | None = flag(
        None, "Network: a file in configs/model/, or a path. Default: the task's.", aliases=["--policy"]
    )
    output_dir: str = flag("ckpt/training_output", "Output directory for checkpoints, logs and the final model.")
    resume_from_checkpoint: str | None = flag(
        None,
        "Resume: auto (newest checkpoint, if any; auto:FOLDER: else that one), newest (there must be one), a folder, "
        "true, false.",
    )
    resume_changed: Literal["refuse", "allow"] = flag(
        "refuse", "On resume, changed settings that change where the training goes: refuse them, or allow and record."
    )
    resume_schedule: Literal["keep", "rebase"] | None = flag(
        None, "On resume with another length: keep the learning rate's course, or rebase what is left of it."
    )
    seed: int = flag(42, "Random seed: weights, sample order, dropout.", ge=0, lt=2**32)
    # How long, on how much
    num_train_epochs: float = flag(3.0, "Number of training epochs; -1 trains until something stops it.", ge=-1)
    max_steps: int = flag(-1, "Maximum number of training steps; -1 leaves the length to num_train_epochs.", ge=-1)
    per_device_train_batch_size: int = flag(8, "Training batch size per device.", ge=1)
    per_device_eval_batch_size: int = flag(8, "Evaluation batch size per device.", ge=1)
    global_batch_size: int | None = flag(
        None,
        "Samples of one step: batch size per device × accumulated batches × processes, solved for it.",
        ge=1,
    )
    # Optimization
    learning_rate: float = flag(5e-5, "Learning rate, at the end of the warm-up.", ge=0)
    weight_decay: float = flag(0.0, "Weight decay; biases and normalization weights are left out.", ge=0)
    warmup_steps: float = flag(0, "Number of warmup steps (below 1: a share of all steps).", ge=0)
    warmup_ratio: float = flag(0.0, "Share of all steps that warms up.", ge=0, le=1)
    lr_scheduler_type: str = flag(
        "linear", "Learning rate scheduler type: linear, cosine, constant …, or a torch.optim.lr_scheduler class."
    )
    min_lr: float | None = flag(None, "Learning rate that the schedule decays to, or never goes below.", ge=0)
    lr_decay_iters: int | None = flag(None, "Steps after which the schedule ends; default: the whole run.", ge=1)
    optim: str = flag(
        "adamw_torch_fused", "Optimizer type: a name of TrainingArguments, a torch.optim or pytorch-optimizer class."
    )
    adam_beta1: float = flag(0.9, "Adam's first beta.", ge=0, lt=1)
    adam_beta2: float = flag(0.999, "Adam's second beta.", ge=0, lt=1)
    adam_epsilon: float = flag(1e-8, "Adam's epsilon.", ge=0)
    # Logging and saving
    logging_dir: str | None = flag(None, "TensorBoard's directory. Default: OUTPUT_DIR/runs/.")
    logging_strategy: Literal["no", "steps", "epoch"] = flag("steps", "When to log.")
    logging_steps: float = flag(10, "Log every this many steps (below 1: a share of all steps).", gt=0)
    report_to: list[str] = flag(["tensorboard"], "Reporting backends: tensorboard, wandb, trackio …; none; all.")
    save_strategy: Literal["no", "steps", "epoch", "best"] = flag("steps", "When to save a checkpoint.")
    save_steps: float = flag(500, "Save every this many steps (below 1: a share of all steps).", gt=0)
    save_total_limit: int | None = flag(None, "Keep at most this many checkpoints.", ge=1)
    # Data loading
    dataloader_num_workers: int = flag(0, "Worker processes that load data; 0 loads in the training process.", ge=0)
    dataloader_pin_memory: bool = flag(True, "Pin host memory, for faster copies to the GPU.")
    remove_unused_columns: bool = flag(False, "Drop batch keys that the model's forward does not name.")
    # Evaluation
    do_eval: bool = flag(True, "Evaluate on the held-out split, every eval_steps.")
    eval_steps: float | None = flag(
        None, "Evaluate every this many steps (below 1: a share). Default: save_steps.", gt=0
    )


@dataclass
class CommandArguments:
    """What to do instead of training, and single overrides."""

    check: bool = flag(False, "Validate everything that needs no GPU, print a summary, exit 0 or 2.")
    print_config: str | None = flag(None, "Print the merged configuration with each value's origin: yaml or json.")
    print_schema: bool = flag(False, "Print the JSON schema of a training file, for editors.")
    set: list[str] = flag([], "Override any key: --set key.path=value, typed as YAML types it.")


GROUPS = {
    "what to run": ("task_name", "seed"),
    "length and batch": ("num_train_epochs", "global_batch_size"),
    "optimization": ("learning_rate", "adam_epsilon"),
    "logging and saving": ("logging_dir", "save_total_limit"),
    "data loading": ("dataloader_num_workers", "remove_unused_columns"),
    "evaluation": ("do_eval", "eval_steps"),
}


@cache
def _hf_argument_parser() -> type[argparse.ArgumentParser]:
    """transformers' HfArgumentParser, loaded from its own file: the package's import would cost seconds."""
    loaded = sys.modules.get("transformers.hf_argparser")
    if loaded is None:
        package = importlib.util.find_spec("transformers")
        if package is None or not package.submodule_search_locations:
            raise ConfigError("transformers is not installed: run `make install`, or pip install -e .")
        path = Path(package.submodule_search_locations[0]) / "hf_argparser.py"
        spec = importlib.util.spec_from_file_location("_hf_argparser", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return loaded.HfArgumentParser


@cache
def parser_class() -> type[argparse.ArgumentParser]:
    class KeelArgumentParser(_hf_argument_parser()):
        """HfArgumentParser in which an absent flag stays absent and a mistake is one line."""

        def error(self, message: str) -> None:
            raise ConfigError(_friendly(message))

        @staticmethod
        def _parse_dataclass_field(parser: argparse.ArgumentParser, each: dataclasses.Field) -> None:
            before = set(map(id, parser._actions))
            aliases = {key: value for key, value in each.metadata.items() if key not in NOT_OF_ARGPARSE}
            default = each.default if each.default is not dataclasses.MISSING else each.default_factory()
            bare = dataclasses.field(default=each.default, default_factory=each.default_factory, metadata=aliases)
            bare.name, bare.type = each.name, each.type
            _hf_argument_parser()._parse_dataclass_field(parser, bare)
            for action in parser._actions:
                if id(action) not in before:
                    action.default = argparse.SUPPRESS
                    if each.type == bool | None:
                        action.nargs, action.const = "?", True
            if (each.type is bool and default is False) or each.type == bool | None:
                hyphens = each.name.replace("_", "-")
                parser.add_argument(
                    f"--no_{each.name}",
                    f"--no-{hyphens}",
                    action="store_false",
                    dest=each.name,
                    default=argparse.SUPPRESS,
                )

    return KeelArgumentParser


@cache
def argument_parser() -> argparse.ArgumentParser:
    """The parser of every entry flag. No prefix matching; a flag that is not given leaves no trace."""
    from loader.sources.alias_flags import WordArguments

    kinds = (HyperArguments, CommandArguments, WordArguments)
    parser = parser_class()(kinds, allow_abbrev=False, prog="train.py", add_help=False)
    actions = {action.dest: action for action in parser._actions if not isinstance(action, argparse._StoreFalseAction)}
    actions["resume_from_checkpoint"].nargs, actions["resume_from_checkpoint"].const = "?", "auto"
    actions["print_config"].nargs, actions["print_config"].const = "?", "yaml"
    actions["print_config"].choices = ["yaml", "json"]
    for name in ("check", "print_schema"):
        actions[name].nargs = "?"
    setting = _ExtendAction(actions["set"].option_strings, "set", nargs="+", default=argparse.SUPPRESS)
    for option in setting.option_strings:
        parser._option_string_actions[option] = setting
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    return parser


class _ExtendAction(argparse._ExtendAction):
    """`--set a=1 --set b=2` collects both, also when nothing was there before."""


class Given(NamedTuple):
    """What a command line said: hyper flags, command, words of other scripts (`words.py`), whether help was asked."""

    hyper: HyperArguments
    command: CommandArguments
    words: dict[str, Any]
    asked_for_help: bool


def parse_flags(arguments: list[str] | None = None) -> Given:
    """Command line -> what was given.

    Raises:
        ConfigError: an unknown flag (with the nearest one, or where the key belongs), or a value of the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    namespace, unknown = argument_parser().parse_known_args(arguments)
    if unknown:
        raise ConfigError(_unknown_flags(unknown))
    given = vars(namespace)
    asked_for_help = given.pop("help", False)
    names = {kind: {each.name for each in dataclasses.fields(kind)} for kind in (HyperArguments, CommandArguments)}
    hyper, command = (kind(**{name: given.pop(name) for name in own & given.keys()}) for kind, own in names.items())
    return Given(hyper, command, given, asked_for_help)


def flag_lines(kind: type, names: list[str] | None = None) -> list[str]:
    """One help line for each flag: name, meaning, default, alias."""
    lines = []
    for each in dataclasses.fields(kind):
        if names is not None and each.name not in names:
            continue
        default = each.default if each.default is not dataclasses.MISSING else " ".join(each.default_factory())
        shown = "" if default in (None, "") else f" [{str(default).lower() if isinstance(default, bool) else default}]"
        alias = f" ({each.metadata['aliases'][0]})" if "aliases" in each.metadata else ""
        alias += f" (= {each.metadata['path']})" if each.metadata.get("path") not in (None, each.name) else ""
        lines.append(f"  --{each.name:<28} {each.metadata['help']}{shown}{alias}")
    return lines


def _unknown_flags(unknown: list[str]) -> list[str]:
    from loader.schema.keys import yaml_keys  # imported here: only a mistake needs the whole schema

    lines, options = [], list(argument_parser()._option_string_actions)
    for token in unknown:
        if not token.startswith("-"):
            if not lines:
                lines.append(f"`{token}` is not a flag; flags are written --name value")
            continue
        name = token.split("=")[0]
        key = name.lstrip("-").replace("-", "_")
        bare_key = key.removeprefix("no_")
        if key.split(".")[0] in yaml_keys() or bare_key in yaml_keys():
            shown = key if key.split(".")[0] in yaml_keys() else bare_key
            lines.append(
                f"unknown flag `{name}`: `{shown}` is a process parameter: put it in YAML (`{shown}: …` in the file "
                f"given to --training_config) or use --set {shown}=value"
            )
        else:
            hint = did_you_mean(name.replace("-", "_").replace("__", "--", 1), options) or did_you_mean(name, options)
            lines.append(
                f"unknown flag `{name}`{hint or '; --help lists the flags, --set key=value sets any YAML key'}"
            )
    return lines


def _friendly(message: str) -> str:
    """argparse's message with our marks: which flag, which value, what it takes."""
    message = message.removeprefix("argument ")
    flags, colon, rest = message.partition(": ")
    if not colon or not flags.startswith("-"):
        return message
    return f"flag `{flags.split('/')[0]}`: {rest}"


def help_text() -> str:
    """`--help`: the flags in groups with their defaults, and where everything else is documented."""
    lines = [
        "usage: python train.py [--task_name TASK] [--training_config FILE] [--flag value …] [--set key.path=value …]",
        "",
        "Trains a model on a task. What changes from run to run is a flag; what is stable lives in YAML.",
        "A flag beats YAML, --set beats a flag. Booleans: --do_eval, --do_eval false, --no_do_eval.",
    ]
    names = [each.name for each in dataclasses.fields(HyperArguments)]
    for title, (first, last) in GROUPS.items():
        lines += ["", f"{title}:", *flag_lines(HyperArguments, names[names.index(first) : names.index(last) + 1])]
    from loader.sources.alias_flags import WordArguments

    lines += ["", "the same in the words of language-model scripts; with --dataset and no task, text is trained on:"]
    lines += [*flag_lines(WordArguments), "", "instead of training, and single overrides:"]
    lines += flag_lines(CommandArguments)
    lines += [
        "",
        "Process parameters (data processing, LoRA, quantization, freezing, …) with their comments:",
        "  configs/training/default.yaml    every key: --print_schema    the merged result: --print_config",
        "Any field of the installed transformers.TrainingArguments is a YAML key too.",
        "Exit codes: 0 done, 1 crashed, 2 configuration or input error, 75 preempted (run the same line again).",
    ]
    return "\n".join(lines)
