"""transformers' own models, built or loaded with every error in one line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from models.auto.config import Config, class_name
from models.auto.gguf import gguf_file, gguf_source, gguf_weights
from models.pretrained import from_files, refuse_unfilled


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
        return _pretrained(kind, path, sizes, config.block_size, process)
    if config.config is not None:
        settings = _settings(config.config, sizes)
    elif path:
        settings = _found(AutoConfig, path, path, process, local_files_only=True)
        _fit(settings, sizes, path, can_grow=process.load_pretrain)
    else:
        raise ValueError(
            "`model: {name: auto}` needs either `model_name_or_path` (a hub id or a folder) or `model.config` with a "
            "model_type"
        )
    notes = _long_inputs(settings, config.block_size, path or f"a new {settings.model_type}", own_checkpoint)
    try:
        model = kind.from_config(settings)
        model.notes = notes
        return model
    except (ValueError, TypeError, AttributeError, ImportError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"`model.config` cannot be built as {class_name(config.task)}: {_line(error)}") from error


def _pretrained(kind: type, path: str, sizes: dict[str, int], block_size: int | None, process: Any) -> PreTrainedModel:
    """A pretrained model; what its weights leave open (a new head) is noted as `new_weights`."""
    file = gguf_file(path)
    place, options = gguf_source(file) if file else (path, {})
    settings = _found(AutoConfig, path, place, process, **options)
    _fit(settings, sizes, path)
    notes = _long_inputs(settings, block_size, path, is_trained=True)
    place, options = gguf_weights(file) if file else (path, {})
    options |= {"config": settings, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = _found(kind, path, place, process, **options)
    model.loaded_from, model.notes = str(file or path), notes
    model.new_weights = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return model


def _found(kind: type, path: str, place: str, process: Any, **options: Any) -> Any:
    """`kind.from_pretrained(place)`, its errors in one line that names `path`."""
    options |= {"cache_dir": process.cache_dir}
    return from_files(kind, place, f"`model_name_or_path: {path}`", process.trust_remote_code, **options)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


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


def _fit(settings: PreTrainedConfig, sizes: dict[str, int], path: str, can_grow: bool = False) -> None:
    """As `_fill`, for an architecture that comes with weights: its vocabulary stays.

    It is often padded beyond the tokenizer's; one that is smaller would need a new embedding, and all that was learned
    about tokens would be lost. `can_grow`: such weights are left out, with a line in the log.

    Raises:
        ValueError: the data has tokens that the model does not know.
    """
    has, needs = getattr(settings.get_text_config(), "vocab_size", None), sizes.get("vocab_size")
    if has is not None and needs is not None and needs > has and not can_grow:
        raise ValueError(
            f"the data has {needs} tokens but the model at `model_name_or_path: {path}` knows {has}; prepare the data "
            "with this model's tokenizer"
        )
    stays = has is not None and needs is not None and needs <= has
    _fill(settings, {name: size for name, size in sizes.items() if name != "vocab_size" or not stays})


def _long_inputs(settings: PreTrainedConfig, block_size: int | None, whose: str, is_trained: bool) -> list[str]:
    """Inputs of `block_size` tokens against the model's positions; a line where they are only longer than usual.

    A table of positions ends. Rotated ones do not, but a pretrained model has seen so many tokens and no more.

    Raises:
        ValueError: the table is shorter than the inputs.
    """
    inner = settings.get_text_config()
    positions = getattr(inner, "max_position_embeddings", None)
    if None in (block_size, positions) or block_size <= positions:
        return []
    if any(getattr(inner, name, None) is not None for name in ("rope_parameters", "rope_theta")):
        longer = f"block_size {block_size} is beyond the {positions} tokens that {whose} was trained for"
        return [longer] if is_trained else []
    remedy = "" if is_trained else ", or model.config.max_position_embeddings to more"
    raise ValueError(
        f"`block_size: {block_size}`: {whose} has positions for {positions} tokens only; set block_size to {positions} "
        f"or less{remedy}"
    )


def load_saved(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """See `models.auto.load`."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json; give a run's output folder or a checkpoint in it")
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    settings = from_files(AutoConfig, folder, str(folder), **options)
    model, report = from_files(
        _architecture(settings, folder),
        folder,
        str(folder),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    refuse_unfilled(report, str(folder))
    return model


def load_for_adapter(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """See `models.auto.load_base`. A head that the base lacks is new here, and the adapter brings it."""
    settings = from_files(AutoConfig, folder, str(folder), trust_remote_code, local_files_only=True)
    shown = f"the adapter in {folder} was made for {place}, which"
    file = gguf_file(place)
    source, options = gguf_weights(file) if file else (place, {})
    options |= {"config": settings, "cache_dir": cache_dir, "ignore_mismatched_sizes": True}
    return from_files(_architecture(settings, folder), source, shown, trust_remote_code, **options)


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
