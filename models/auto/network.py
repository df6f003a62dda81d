"""transformers' own models, built or loaded with every error in one line."""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from models.auto.config import Config, class_name
from models.auto.gguf import pretrained_source
from models.pretrained import from_files, load_model, load_whole_model, one_line, saved_config
from storage.suggestions import did_you_mean

BUILD_ERRORS = (
    ValueError, TypeError, AttributeError, ImportError, ZeroDivisionError, RuntimeError, AssertionError,
)  # fmt: skip
SIZES = ("vocab_size", "num_labels", "labels", "problem_type", "image_size", "num_channels")  # of the data


def build_network(config: Config, process: Any) -> PreTrainedModel:
    """See `models.auto.build`."""
    model = _built(config, process)
    if config.packed and not separates_texts(model):
        raise ValueError(
            f"`dataset.packing: true`: a {model.config.model_type} reads the records of a row as one text, because it "
            "does not separate them by position_ids; set dataset.packing to false"
        )
    return model


def _built(config: Config, process: Any) -> PreTrainedModel:
    kind = getattr(transformers, class_name(config.task))
    path = process.model_name_or_path and os.path.expanduser(process.model_name_or_path)
    sizes = {key: getattr(config, key) for key in SIZES if getattr(config, key) is not None}
    own_checkpoint = process.is_pretrained or process.load_pretrain
    if path and not own_checkpoint:
        if config.config is not None:
            raise ValueError(
                "`model.config` describes a new model, `model_name_or_path` names a pretrained one; set one of them to "
                "null, or `load_pretrain` to true for the weights that fit"
            )
        return _pretrained(kind, path, sizes, config.block_size, process)
    if config.config is not None:
        settings = new_settings(config.config, sizes, writes_text=config.task == "causal_lm")
    elif path:
        shown = f"`model_name_or_path: {path}`"
        settings = from_files(AutoConfig, path, shown, process.trust_remote_code, local_files_only=True)
        _fit(kind, settings, sizes, path, can_grow=process.load_pretrain)
    else:
        raise ValueError(
            "`model: {name: auto}` needs either `model_name_or_path` (a hub id or a folder) or `model.config` with a "
            "model_type"
        )
    notes = _long_inputs(settings, config.block_size, path or f"a new {settings.model_type}", own_checkpoint)
    try:
        known = kind._model_mapping.get(type(settings), ())
        for architecture in (known if isinstance(known, tuple) else (known,))[:1]:
            settings.architectures = [architecture.__name__]  # deit, which has two, is chosen by it
        model = kind.from_config(settings)
    except BUILD_ERRORS as error:
        message = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"`model.config` cannot be built as {class_name(config.task)}: {message}") from error
    model.notes = notes
    if config.config is not None and config.task == "causal_lm" and "pad_token_id" not in config.config:
        model.get_input_embeddings().padding_idx = None  # to the data that id is a token like any other
    _check_image_size(model, config.image_size, f"the model at `{path}`" if path else f"this {settings.model_type}")
    return model


def _pretrained(kind: type, path: str, sizes: dict[str, Any], block_size: int | None, process: Any) -> PreTrainedModel:
    """Load a pretrained model; parameters that its files do not fill (a new head) are its `new_weights`."""
    place, config_options, options = pretrained_source(path)
    shared = (place, f"`model_name_or_path: {path}`", process.trust_remote_code)
    settings = from_files(AutoConfig, *shared, cache_dir=process.cache_dir, **config_options)
    channels = getattr(settings, "num_channels", None)
    _fit(kind, settings, sizes, path)
    notes = _long_inputs(settings, block_size, path, is_trained=True)
    options["cache_dir"] = process.cache_dir
    model, new = load_model(kind, *shared, config=settings, **options)
    if channels != getattr(settings, "num_channels", None):
        settings = copy.deepcopy(settings)
        settings.num_channels = channels
        for module in _take_channels(model, load_model(kind, *shared, config=settings, **options)[0]):
            notes.append(f"{module}: the pretrained weights of {channels} channels, for {model.config.num_channels}")
            # As a whole: an adapter saves modules, and its base has other weights here.
            new |= {f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()}
    model.loaded_from = str(Path(place, options["gguf_file"])) if config_options else path
    model.new_weights, model.notes = new, notes
    _check_image_size(model, sizes.get("image_size"), f"the model at `model_name_or_path: {path}`")
    return model


@torch.no_grad()
def _take_channels(model: PreTrainedModel, pretrained: PreTrainedModel) -> list[str]:
    """Fill convolutions over another number of input channels than the pretrained ones; return their names.

    A gray image gives what it gives in all of the other's channels. Channels beyond those of the pretrained model begin
    at 0, so that the first ones alone give what they gave.
    """
    weights, modules = dict(pretrained.named_parameters()), []
    for name, weight in model.named_parameters():
        source = weights[name]
        if weight.shape == source.shape or weight[:, :1].shape != source[:, :1].shape:
            continue
        before, now = source.shape[1], weight.shape[1]
        if now == 1:
            weight.copy_(source.sum(dim=1, keepdim=True))
        elif before == 1:
            weight.copy_(source.expand_as(weight) / now)
        else:
            weight.zero_()[:, :before] = source[:, :now]
        modules.append(name.rpartition(".")[0])
    return modules


@torch.no_grad()
def _check_image_size(model: PreTrainedModel, size: int | None, whose: str) -> None:
    """Raise ValueError of one line if a classifier cannot take images of `size` pixels; known once it has had one."""
    if size is None or model.main_input_name != "pixel_values":
        return
    channels, was_training = getattr(model.config, "num_channels", 3), model.training
    try:
        logits = model.eval()(pixel_values=torch.zeros(1, channels, size, size, dtype=model.dtype)).logits
        reason = None if logits.isfinite().all() else "its outputs are not finite"
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        reason = one_line(error)
    finally:
        model.train(was_training)
    if reason is not None:
        reason = reason.rstrip(".")
        raise ValueError(f"`dataset.image_size: {size}`: {whose} takes no images of {size} pixels: {reason}; change it")


# Small enough for any model, and long enough that each text's last token could see the other's.
TWO_TEXTS = [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]]
HALF = (torch.bfloat16, torch.float16)


@torch.no_grad()
def separates_texts(model: PreTrainedModel) -> bool:
    """Whether a second text in a row, whose position_ids begin at 0 again, has the same outputs after any first one."""
    parameters = inspect.signature(model.forward).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    is_refused = not takes_any and "position_ids" not in {parameter.name for parameter in parameters}
    weight = next(model.parameters())
    if is_refused or isinstance(weight, FakeTensor):  # a forward without position_ids is refused when the run starts
        return True
    positions = torch.tensor(TWO_TEXTS, device=weight.device)
    tokens = positions % model.config.get_text_config().vocab_size
    rows = torch.cat((tokens, torch.cat((tokens[:, :8].flip(-1), tokens[:, 8:]), dim=-1)))
    was_training, cached = model.training, getattr(model.config, "use_cache", None)
    model.config.use_cache = False  # as in training
    try:
        outputs = model.eval()(input_ids=rows, position_ids=positions.expand(2, -1)).logits[:, 8:].float()
    except Exception:  # code that came with a model, or kernels that need a GPU: training shows what it does
        return True
    finally:
        model.config.use_cache = cached
        model.train(was_training)
    rounding = outputs.abs().max() * (0.05 if weight.dtype in HALF else 1e-5)
    return bool((outputs[0] - outputs[1]).abs().max() <= rounding)


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def new_settings(values: dict[str, Any], sizes: dict[str, int], writes_text: bool = False) -> PreTrainedConfig:
    """Return `model.config` as the configuration of its model type.

    Args:
        writes_text: The architecture's own special tokens, which are of another vocabulary, are none of the model's:
            a text must not end at what to the data is a letter.

    Raises:
        ValueError: an unknown model type or field (with the nearest), or a value that contradicts the data's.
    """
    values = dict(values)
    model_type = values.pop("model_type")
    known_types = transformers.CONFIG_MAPPING.keys()
    if model_type not in known_types:
        hint = did_you_mean(model_type, known_types)
        raise ValueError(f"`model.config.model_type: {model_type}` is not a model type of transformers{hint}")
    default = AutoConfig.for_model(model_type)
    known = [name for name in {**default.to_dict(), **default.attribute_map} if not name.startswith("_")]
    known += ["num_labels", "attn_implementation"]
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"`model.config.{name}` is not a field of {model_type}'s configuration{hint}")
    for name, size in sizes.items():
        if name != "labels" and values.get(name, size) != size:
            raise ValueError(f"`model.config.{name}: {values[name]}` contradicts {size}, the data's or `model.{name}`")
    foreign = {}
    if writes_text:
        size = (
            sizes.get("vocab_size") or values.get("vocab_size") or getattr(default.get_text_config(), "vocab_size", 0)
        )
        for name in set(SPECIAL_TOKENS) & default.to_dict().keys() - values.keys():
            if name != "pad_token_id" or (getattr(default, name) or 0) >= size:
                foreign[name] = None
    try:
        settings = AutoConfig.for_model(model_type, **values, **foreign)
    except Exception as error:  # each configuration checks in its own way
        raise ValueError(f"`model.config`: {one_line(error)}") from error
    for name in foreign:  # some configurations read null as their default
        setattr(settings, name, None)
    _fill(settings, sizes)
    return settings


def _fill(settings: PreTrainedConfig, sizes: dict[str, int]) -> None:
    """Set the data's sizes that the architecture has."""
    if "num_labels" in sizes:
        settings.num_labels = sizes["num_labels"]
    if "labels" in sizes:
        settings.id2label = dict(enumerate(sizes["labels"]))
        settings.label2id = {label: number for number, label in enumerate(sizes["labels"])}
    for name in ("problem_type", "image_size", "num_channels"):
        if name in sizes and hasattr(settings, name):
            setattr(settings, name, sizes[name])
    text = settings.get_text_config()
    if "vocab_size" in sizes and hasattr(text, "vocab_size"):
        text.vocab_size = sizes["vocab_size"]


def _fit(kind: Any, settings: PreTrainedConfig, sizes: dict[str, Any], path: str, can_grow: bool = False) -> None:
    """Set the data's sizes as `_fill`, for an architecture with weights, which keeps its own vocabulary.

    That is often padded beyond the tokenizer's. A smaller one would need a new embedding, and all that was learned
    about tokens would be lost. `can_grow`: leave such weights out, with a line in the log. Likewise `image_size` stays
    where the shape of a weight follows from it; whether the model takes other images shows when it is built.

    Raises:
        ValueError: the data has tokens that the model does not know.
    """
    size, needed = getattr(settings.get_text_config(), "vocab_size", None), sizes.get("vocab_size")
    if None not in (size, needed):
        if needed <= size:
            sizes = {**sizes, "vocab_size": size}
        elif not can_grow:
            raise ValueError(
                f"the data has {needed} tokens but the model at `model_name_or_path: {path}` knows {size}; prepare the "
                "data with this model's tokenizer"
            )
    side = getattr(settings, "image_size", None)
    if side is not None and sizes.get("image_size", side) != side:
        other = copy.deepcopy(settings)
        other.image_size = sizes["image_size"]
        if _shapes(kind, settings) != _shapes(kind, other):
            sizes = {**sizes, "image_size": side}
    _fill(settings, sizes)


def _shapes(kind: Any, settings: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights, without making them."""
    with torch.device("meta"):
        model = kind.from_config(settings)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _long_inputs(settings: PreTrainedConfig, block_size: int | None, whose: str, is_trained: bool) -> list[str]:
    """Compare inputs of `block_size` tokens with the model's positions; return a line if they are longer than trained.

    A table of positions ends. Rotary positions do not, but a pretrained model has seen inputs up to a length only.

    Raises:
        ValueError: the table is shorter than the inputs.
    """
    text = settings.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if None in (block_size, positions) or block_size <= positions:
        return []
    if any(getattr(text, name, None) is not None for name in ("rope_parameters", "rope_theta")):
        longer = f"block_size {block_size} is beyond the {positions} tokens that {whose} was trained for"
        return [longer] if is_trained else []
    remedy = "" if is_trained else ", or model.config.max_position_embeddings to more"
    raise ValueError(
        f"`block_size: {block_size}`: {whose} has positions for {positions} tokens only; set block_size to {positions} "
        f"or less{remedy}"
    )


def load_saved(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """See `models.auto.load`."""
    saved_config(folder)  # one line for what is wrong with it
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    settings = from_files(AutoConfig, folder, str(folder), **options)
    return load_whole_model(_architecture(settings, folder), folder, str(folder), **options)


def load_for_adapter(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """See `models.auto.load_base`. A head that the base lacks is new here; the adapter contains its weights."""
    settings = from_files(AutoConfig, folder, str(folder), trust_remote_code, local_files_only=True)
    shown = f"the adapter in {folder} was made for {place}, which"
    source, _, options = pretrained_source(place)
    options |= {"config": settings, "cache_dir": cache_dir}
    return load_model(_architecture(settings, folder), source, shown, trust_remote_code, **options)[0]


def _architecture(settings: PreTrainedConfig, folder: Path) -> Any:
    """Return the class that config.json names; for code that came with a model, the Auto class that finds it."""
    name = (settings.architectures or [""])[0]
    auto = [key for key in getattr(settings, "auto_map", None) or {} if key.startswith("AutoModel")]
    if not hasattr(transformers, name) and not auto:
        raise ValueError(
            f"{folder}: config.json names the architecture {name!r}, which this transformers does not have"
        )
    return getattr(transformers, name if hasattr(transformers, name) else auto[0])
