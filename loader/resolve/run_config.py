"""The resolved configuration of one run, and how it is resolved: layers -> one tree -> typed values."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError, Problems, did_you_mean, quoted
from loader.resolve.precedence import settle
from loader.resolve.type_check import check_dataclass, check_value, mapping_of_text
from loader.schema.components import Component, component_module, shipped
from loader.schema.keys import TAKEN_OVER, keys_of, scalar_keys, yaml_keys
from loader.schema.process_arguments import ProcessArguments
from loader.schema.sections import (
    COMPONENTS,
    FREE_SECTIONS,
    OPTIONAL_SECTIONS,
    SECTIONS,
    CheckpointingSection,
    EarlyStoppingSection,
    EmaSection,
    LoggingSection,
    ParameterGroup,
    SchedulerSection,
)
from loader.schema.training_arguments_fields import trainer_fields
from loader.sources import layers
from loader.sources.alias_flags import OF_TEXT, TEXT_TASK, said_start, settle_words
from loader.sources.config_tree import CLI, DEFAULT, SET, Node, find, leaves, merge, node_of, rank
from loader.sources.key_aliases import TRACKING, TRACKING_MODEL_KEYS
from loader.sources.yaml_reader import read_scalar

# Kinds of file that a key names.
KINDS = (("task", "task_name"), ("model", "model_config"))
# Choosing another optimizer or schedule leaves the earlier one's constructor arguments behind.
CHOSEN_BY = {"optim": "optimizer", "lr_scheduler_type": "scheduler"}


@dataclass
class RunConfig:
    """Everything one run was told, typed, with the origin of every value.

    `tree` is the merged configuration; `hyper`, `process`, `trainer` (further TrainingArguments fields that were set),
    `optimizer`/`scheduler` (constructor arguments), `schedule` (what the scheduler counts), `param_groups`,
    `callbacks`, the optional sections, and the components `dataset`, `model` and `env` are views on it. `notes` are
    lines to print once: what other systems' words became.
    """

    tree: Node
    layers: list[Node]
    hyper: HyperArguments
    process: ProcessArguments
    trainer: dict[str, Any]
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    schedule: SchedulerSection = field(default_factory=SchedulerSection)
    param_groups: list[ParameterGroup] = field(default_factory=list)
    callbacks: list[str | dict[str, Any]] = field(default_factory=list)
    ema: EmaSection | None = None
    early_stopping: EarlyStoppingSection | None = None
    checkpointing: CheckpointingSection | None = None
    logging: LoggingSection | None = None
    notes: list[str] = field(default_factory=list)
    dataset: Component | None = None
    env: Component | None = None
    model: Component | None = None

    @property
    def seed(self) -> int:
        return self.hyper.seed

    @property
    def cache_dir(self) -> Path:
        """Where prepared data lives: `cache_dir`, else $KEEL_HOME, else ~/.cache/keel."""
        folder = self.process.cache_dir or os.environ.get("KEEL_HOME") or "~/.cache/keel"
        return Path(os.path.expanduser(folder)).absolute()

    @property
    def output_dir(self) -> Path:
        return Path(os.path.expanduser(self.hyper.output_dir))

    @property
    def checkpoint_dir(self) -> Path:
        """Where the checkpoint-N folders lie: `checkpointing.dirpath`, else output_dir."""
        folder = self.checkpointing.dirpath if self.checkpointing is not None else None
        return Path(os.path.expanduser(folder)) if folder else self.output_dir

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The optimizer's constructor arguments: its section, and for a class `optim_args` (`momentum=0.5, …`) too."""
        if self.hyper.optim in typing.get_args(trainer_fields()["optim"].annotation):
            return self.optimizer  # transformers reads optim_args itself
        said = [each.partition("=") for each in (self.trainer.get("optim_args") or "").split(",") if each.strip()]
        return {name.strip(): read_scalar(value, DEFAULT).plain() for name, _, value in said} | self.optimizer

    @property
    def is_endless(self) -> bool:
        return self.hyper.max_steps <= 0 and self.hyper.num_train_epochs == -1

    @property
    def task(self) -> str:
        """The task's name: its file's stem."""
        return Path(self.hyper.task_name).stem

    def place(self, path: str) -> str:
        """` at FILE:LINE:COLUMN` of a key, for an error line; nothing when it has its default."""
        node = find(self.tree, path)
        return node.origin.place if node is not None else ""

    def origins(self) -> dict[str, str]:
        """`{"key.path": "default" | "FILE:LINE" | "cli" | "set"}` for every value."""
        return {path: str(node.origin) for path, node in leaves(self.tree)}

    def was_set(self, path: str) -> bool:
        """Whether a file of the user's, a flag or --set gave this key (its value may equal the default)."""
        return self.rank(path) > 1

    def on_command_line(self, path: str) -> bool:
        """Whether a flag or --set gave this key."""
        node = find(self.tree, path)
        return node is not None and node.origin in (CLI, SET)

    def rank(self, path: str) -> int:
        """Which layer a key's value comes from: 0 built-in, 1 default.yaml, then upwards."""
        return rank(self.layers, path)


def resolve(
    hyper: HyperArguments | None = None,
    settings: list[str] | None = None,
    training_config: str | os.PathLike | None = None,
    words: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Flags, YAML and `--set` overrides as one validated RunConfig.

    Args:
        hyper: The flags that were given; all others leave the word to YAML.
        settings: `key.path=value` strings, the strongest layer.
        training_config: The training file; `hyper.training_config` where None, else the one that the task names.
        words: Flags in the words of language-model scripts, see `words.WordArguments`.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    hyper, words, problems = hyper or HyperArguments(), words or {}, Problems()
    settings = [settings] if isinstance(settings, str) else settings
    flags, overrides = layers.flag_layer(hyper, words, problems), layers.set_layer(settings or [], problems)
    chosen = training_config or hyper.training_config
    if chosen is None and said_start([flags, overrides]) == "resume" and "task_name" not in hyper.given:
        chosen = _resumed_file(flags)
    training = _training(chosen, problems) if chosen is not None else []
    implied = {"task_name": TEXT_TASK} if (words.keys() | problems.words) & set(OF_TEXT) else {}
    below = [layers.built_in_layer(**implied), *layers.training_layers(layers.DEFAULT_FILE, problems)]
    if chosen is None:  # the task's own recipe, where the command line names none
        training = _recipe_of_task([*below, flags, overrides], problems)
    above = [*training, flags, overrides]
    start = said_start(above)
    settle_words(above, problems)
    if start == "prev_run":
        above = [*_earlier_network(_merged([*below, *above])), *above]
    found = _task_and_model_layers(below, above, problems)
    for layer in found:
        layer.value.pop("training", None)
    stack = [*below, *found, *_earlier_model([*below, *found, *above]), *above]
    return _typed(stack, problems)


def _recipe_of_task(stack: list[Node], problems: Problems) -> list[Node]:
    """The layers of the training file that the task's file names."""
    task = _task_and_model_layers(stack, [], Problems(), kinds=(("task", "task_name"),))
    recipe = task[0].value.get("training") if task else None
    if recipe is None:
        return []
    return _training(layers.find_file("training", str(recipe.value), recipe.origin.place), problems)


def _earlier_network(tree: Node) -> list[Node]:
    """`init_from: prev_run` takes that run's network, unless another is named."""
    model = _model_of(tree.value["model_name_or_path"].value)
    return [] if model is None else [Node({"model_config": model.value["name"]}, model.origin)]


def _earlier_model(stack: list[Node]) -> list[Node]:
    """With `is_pretrained` the model's settings are those that its weights were trained with, unless others are set."""
    tree = _merged(stack)
    name, model = find(tree, "model.name"), _model_of(tree.value["model_name_or_path"].value)
    if tree.value["is_pretrained"].value is not True or name is None or model is None:
        return []
    return [Node({"model": model}, model.origin)] if model.value["name"].value == name.value else []


def _model_of(path: Any) -> Node | None:
    """The section `model` of the run in a folder, or None; whoever loads its weights says what is wrong with it."""
    file = Path(os.path.expanduser(path)) / "run.yaml" if isinstance(path, str) else None
    try:
        model = layers.training_layers(file, Problems())[-1].value.get("model") if file and file.is_file() else None
    except ConfigError:
        return None
    return model if model is not None and model.is_mapping and "name" in model.value else None


def _training(chosen: str | os.PathLike, problems: Problems) -> list[Node]:
    """The layers of a training file; none for default.yaml, which is always there."""
    path = layers.find_file("training", os.fspath(chosen))
    return layers.training_layers(path, problems) if path.resolve() != layers.DEFAULT_FILE.resolve() else []


def _resumed_file(flags: Node) -> Path:
    """run.yaml of the run that `--init_from resume` goes on with: its flags need not be given again."""
    folder = flags.value.get("output_dir")
    path = Path(os.path.expanduser(str(folder.value) if folder is not None else "out")) / "run.yaml"
    if not path.is_file():
        raise ConfigError(
            f"`--init_from resume`: there is no run to go on with in {path.parent} (no run.yaml); name its folder with "
            "--out_dir"
        )
    return path


def read_saved(path: str | os.PathLike) -> RunConfig:
    """The RunConfig of an earlier run from its run.yaml alone: no task, model or default file is read again."""
    problems = Problems()
    saved = layers.training_layers(path, problems)
    settle_words(saved, problems)
    return _typed([layers.built_in_layer(), *saved], problems, is_saved=True)


def _merged(stack: list[Node]) -> Node:
    """The layers as one tree. A layer that names another component leaves the earlier one's keys behind."""
    tree = Node({}, DEFAULT)
    for layer in stack:
        for section in COMPONENTS:
            before, now = find(tree, f"{section}.name"), find(layer, f"{section}.name")
            if before is not None and now is not None and before.value != now.value:
                del tree.value[section]
        for key, section in CHOSEN_BY.items():
            before, now = tree.value.get(key), layer.value.get(key)
            if now is not None and (before is None or before.value != now.value):
                tree.value.pop(section, None)
        tree = merge(tree, layer)
    return tree


def _task_and_model_layers(
    below: list[Node], above: list[Node], problems: Problems, kinds: Sequence[tuple[str, str]] = KINDS
) -> list[Node]:
    """The files that `task_name` and `model_config` name, whichever layer names them last."""
    found: list[Node] = []
    for kind, key in kinds:
        named = _merged([*below, *found, *above]).value.get(key)
        if named is None or named.value is None or isinstance(named.value, (list, dict)):
            continue
        try:
            path = layers.find_file(kind, str(named.text or named.value), named.origin.place)
            found.insert(0, layers.file_layer(kind, path, problems))  # a task may override its model's keys
        except ConfigError as error:
            problems.lines += error.problems
            problems.file_missing = True
    return found


def _typed(stack: list[Node], problems: Problems, is_saved: bool = False) -> RunConfig:
    """One tree of positions -> typed views on it."""
    tree = _merged(stack)
    settle(tree, stack, problems, is_saved)
    values = _scalars(tree, problems)
    parts: dict[str, Any] = {}
    for section, kind in FREE_SECTIONS.items():
        node = _mapping(tree, section, problems)
        checked = check_dataclass(section, node, kind, problems, free=True) if node else None
        parts[section] = checked.extra if checked else {}
        if getattr(checked, "betas", None):  # three of them: the constructor's own; two are adam_beta1 and adam_beta2
            parts[section]["betas"] = checked.betas
        if kind is SchedulerSection and checked:
            parts["schedule"] = checked
    for section, kind in OPTIONAL_SECTIONS.items():
        node = _mapping(tree, section, problems)
        parts[section] = check_dataclass(section, node, kind, problems) if node else None
    parts["param_groups"] = _parameter_groups(tree, problems)
    parts["callbacks"] = _callbacks(tree, problems)
    for section in COMPONENTS:
        parts[section] = _component(tree, section, problems)
    problems.raise_if_any()
    hyper = HyperArguments(**{name: values[name] for name in keys_of(HyperArguments)})
    process = ProcessArguments(**{name: values[name] for name in keys_of(ProcessArguments)})
    own = {*keys_of(HyperArguments), *keys_of(ProcessArguments)}
    trainer = {name: value for name, value in values.items() if name not in own}
    return RunConfig(tree, stack, hyper, process, trainer, notes=problems.notes, **parts)


def _scalars(tree: Node, problems: Problems) -> dict[str, Any]:
    """Every top-level key that is not a section, checked; unknown keys are problems."""
    keys, values = scalar_keys(), {}
    for name, node in tree.value.items():
        if name in SECTIONS:
            continue
        if name in TAKEN_OVER:
            problems.add(f"`{name}`{node.origin.place} has no effect here: {TAKEN_OVER[name]}")
        elif name in keys:
            node = tree.value[name] = mapping_of_text(name, node, keys[name], problems)
            values[name] = check_value(name, node, keys[name], problems)
        else:
            problems.add(f"unknown key `{name}`{node.origin.place}{_remedy(name)}")
    return values


def _remedy(name: str) -> str:
    """Where an unknown top-level key belongs, or the nearest known one."""
    for section in COMPONENTS:
        for component in shipped(section):
            if name in keys_of(component_module(section, component).Config):
                return f"; it is a key of `{section}`: write it under `{section}:`"
    return did_you_mean(name, yaml_keys()) or "; --print_schema lists every key"


def _mapping(tree: Node, section: str, problems: Problems) -> Node | None:
    node = tree.value.get(section)
    if node is None or node.value is None:
        return None
    if not node.is_mapping:
        problems.add(f"`{section}`{node.origin.place} must be a mapping, or the name of a file in configs/{section}/")
        return None
    return node


def _parameter_groups(tree: Node, problems: Problems) -> list[ParameterGroup]:
    node = tree.value.get("param_groups")
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list) or not all(each.is_mapping for each in node.value):
        problems.add(
            f"`param_groups`{node.origin.place} must be a list of mappings with `pattern` and `lr` or `lr_factor`"
        )
        return []
    checked = [
        check_dataclass(f"param_groups[{index}]", each, ParameterGroup, problems)
        for index, each in enumerate(node.value)
    ]
    return [each for each in checked if each is not None]


def _callbacks(tree: Node, problems: Problems) -> list[str | dict[str, Any]]:
    """`callbacks`: import paths, or mappings with `name` and the constructor's arguments."""
    node = tree.value.get("callbacks")
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        problems.add(f"`callbacks`{node.origin.place} must be a list of import paths, or of mappings with `name`")
        return []
    for index, each in enumerate(node.value):
        name = each.value.get("name") if each.is_mapping else each
        if name is None or not isinstance(name.value, str) or "." not in name.value:
            problems.add(
                f"`callbacks[{index}]`{each.origin.place} must be an import path (my_lab.callbacks.Mine), or a mapping "
                "with such a `name` and the arguments"
            )
    return [each.plain() for each in node.value]


def _component(tree: Node, section: str, problems: Problems) -> Component | None:
    """The `name` of a section as a module, its other keys as that module's Config."""
    node = _mapping(tree, section, problems)
    if node is None:
        return None
    name = node.value.get("name")
    if name is None or not isinstance(name.value, str):
        if not problems.file_missing:
            problems.add(f"`{section}`{node.origin.place} has no `name`; shipped: {quoted(shipped(section))}")
        return None
    try:
        module = component_module(section, name.value, name.origin.place)
    except ConfigError as error:
        problems.lines += error.problems
        return None
    rest = Node({key: child for key, child in node.value.items() if key != "name"}, node.origin)
    if section == "model":
        for key in [key for key in TRACKING_MODEL_KEYS if key in rest.value and key not in keys_of(module.Config)]:
            problems.add(f"not available yet: `model.{key}`{rest.value.pop(key).origin.place}: {TRACKING}")
    config = check_dataclass(section, rest, module.Config, problems)
    if config is None:
        return None
    # The component's own defaults belong to what the run was told; the layers' own nodes stay as they are.
    defaults = {key: node_of(getattr(config, key), DEFAULT) for key in keys_of(module.Config) if key not in node.value}
    tree.value[section] = Node({**node.value, **defaults}, node.origin)
    return Component(name.value, module, config)


def with_dims(run: RunConfig, dims: dict[str, int]) -> Any:
    """The model's config with what the data knows (action_dim, chunk_size …) filled in.

    Raises:
        ConfigError: YAML gives a dimension that contradicts the data; names both places.
    """
    assert run.model is not None
    filled, problems = {}, Problems()
    for name, value in dims.items():
        if not hasattr(run.model.config, name):
            continue
        stated = getattr(run.model.config, name)
        if stated is not None and stated != value:
            data = run.place("dataset.path") or run.place("dataset.name")
            problems.add(
                f"`model.{name}: {stated}`{run.place(f'model.{name}')} contradicts the data (dataset{data}), which has "
                f"{value}; leave `model.{name}` out"
            )
        filled[name] = value
    problems.raise_if_any()
    return dataclasses.replace(run.model.config, **filled)
