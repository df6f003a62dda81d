"""transformers' own models, built or loaded with every error in one line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from models.auto import Config, class_name
from models.pretrained import refuse_unfilled


def build_network(config: Config, process: Any) -> PreTrainedModel:
    """See `models.auto.build`."""
    kind = getattr(transformers, class_name(config.task), None)
    if kind is None:
        raise ValueError(f"`model.task: {config.task}`: this transformers has no {class_name(config.task)}; update it")
    path = process.model_name_or_path and os.path.expanduser(process.model_name_or_path)
    sizes = {key: getattr(config, key) for key in ("vocab_size", "num_labels") if getattr(config, key) is not None}
    own_checkpoint = process.is_pretrained or process.load_pretrain
    if path and not own_checkpoint:
        if config.config is not None:
            raise ValueError(
                "`model.config` describes a new model, `model_name_or_path` names a pretrained one; set one of them to "
                "null, or `load_pretrain` to true for the weights that fit"
            )
        return _pretrained(kind, path, sizes, process)
    if config.config is not None:
        settings = _settings(config.config, sizes)
    elif path:
        settings = _found(AutoConfig, path, process, local_files_only=True)
        _fill(settings, sizes)
    else:
        raise ValueError(
            "`model: {name: auto}` needs either `model_name_or_path` (a hub id or a folder) or `model.config` with a "
            "model_type"
        )
    try:
        return kind.from_config(settings)
    except (ValueError, TypeError, AttributeError, ImportError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"`model.config` cannot be built as {class_name(config.task)}: {_line(error)}") from error


def _pretrained(kind: type, path: str, sizes: dict[str, int], process: Any) -> PreTrainedModel:
    """A pretrained model; what its weights leave open (a new head) is noted as `new_weights`."""
    settings = _found(AutoConfig, path, process)
    _fill(settings, sizes)
    model, report = _found(kind, path, process, config=settings, output_loading_info=True, ignore_mismatched_sizes=True)
    model.loaded_from = path
    model.new_weights = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return model


def _found(kind: type, path: str, process: Any, **options: Any) -> Any:
    """`kind.from_pretrained(path)`, its errors in one line."""
    remote = {"trust_remote_code": True} if process.trust_remote_code else {}
    try:
        return kind.from_pretrained(path, cache_dir=process.cache_dir, **remote, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(f"`model_name_or_path: {path}` cannot be loaded: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _settings(values: dict[str, Any], sizes: dict[str, int]) -> PreTrainedConfig:
    """`model.config` as the configuration of its model type.

    Raises:
        ValueError: an unknown model type or field (with the nearest), or a value that contradicts the data's.
    """
    values = dict(values)
    model_type = values.pop("model_type")
    known_types = list(transformers.CONFIG_MAPPING.keys())
    if model_type not in known_types:
        near = difflib.get_close_matches(model_type, known_types, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ValueError(f"`model.config.model_type: {model_type}` is not a model type of transformers{hint}")
    default = AutoConfig.for_model(model_type)
    known = [name for name in {**default.to_dict(), **default.attribute_map} if not name.startswith("_")]
    known += ["num_labels", "attn_implementation"]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`model.config.{name}` is not a field of {model_type}'s configuration{hint}")
    for name, size in sizes.items():
        if values.get(name, size) != size:
            raise ValueError(f"`model.config.{name}: {values[name]}` contradicts {size}, the data's or `model.{name}`")
    try:
        settings = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # each configuration checks in its own way
        raise ValueError(f"`model.config`: {' '.join(str(error).split())}") from error
    _fill(settings, sizes)
    return settings


def _fill(settings: PreTrainedConfig, sizes: dict[str, int]) -> None:
    """Sizes from the data, where the architecture has them."""
    if "num_labels" in sizes:
        settings.num_labels = sizes["num_labels"]
    inner = settings.get_text_config()
    if "vocab_size" in sizes and hasattr(inner, "vocab_size"):
        inner.vocab_size = sizes["vocab_size"]


def load_saved(folder: Path) -> PreTrainedModel:
    """See `models.auto.load`."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json; give a run's output folder or a checkpoint in it")
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    model, report = _architecture(settings, folder).from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_unfilled(report, str(folder))
    return model


def load_for_adapter(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """See `models.auto.load_base`. A head that the base lacks is new here, and the adapter brings it."""
    remote = {"trust_remote_code": True} if trust_remote_code else {}
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, **remote)
    try:
        return _architecture(settings, folder).from_pretrained(
            place, config=settings, cache_dir=cache_dir, ignore_mismatched_sizes=True, **remote
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the adapter in {folder} was made for {place}, which cannot be loaded: {_line(error)}"
        ) from error


def _architecture(settings: PreTrainedConfig, folder: Path) -> Any:
    """The class that config.json names; for code that came with a model, the Auto class that finds it."""
    name = (settings.architectures or [""])[0]
    if hasattr(transformers, name):
        return getattr(transformers, name)
    auto = [each for each in getattr(settings, "auto_map", None) or {} if each.startswith("AutoModel")]
    if not auto:
        raise ValueError(
            f"{folder}: config.json names the architecture {name!r}, which this transformers does not have"
        )
    return getattr(transformers, auto[0])
