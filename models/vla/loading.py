"""Build a vision-language-action policy: its backbone's configuration and weights, new or pretrained."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from models.auto.gguf import pretrained_source
from models.auto.network import new_settings
from models.policy import require_dims
from models.pretrained import from_files, load_checkpoint, load_model, one_line, saved_config
from models.vla.action_tokens import read_fast
from models.vla.backbone import PROVED, language_model_name, refusing_others
from models.vla.config import Config
from models.vla.network import VLA, VLAConfig
from storage import safe_read

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
MAY_BE_MISSING = {"_raise_exceptions_for_missing_entries": False}
OF_BACKBONE = ("config", "image_size", "image_mean", "image_std")
USUAL_SIZE = 224  # pixels of a side, for backbones that take any


def build_policy(config: Config, process: Any) -> VLA:
    """See `models.vla.build`."""
    require_dims(config)
    if config.config is None and (saved := saved_policy(process)):
        config = replace(config, **{name: saved.get(name) for name in OF_BACKBONE if getattr(config, name) is None})
        path, is_causal_lm, settings = None, False, saved_settings(config, process)
    else:
        of_others = process.model_name_or_path and not (process.is_pretrained or process.load_pretrain)
        path = os.path.expanduser(process.model_name_or_path) if of_others else None
        settings, is_causal_lm = backbone_settings(config, path, process)
    with refusing_others(settings.model_type):
        policy_config = filled_config(config, settings, process, path, None if is_causal_lm else path)
        check_losses(policy_config)
        if path is None:
            policy = VLA(policy_config)
        else:
            remote = process.cache_dir, process.trust_remote_code
            policy = with_weights(policy_config, settings, path, is_causal_lm, *remote)
        if settings.model_type not in PROVED:
            policy.backbone.try_out()
    return policy


def filled_config(
    config: Config, settings: PreTrainedConfig, process: Any, path: str | None, images_of: str | None
) -> VLAConfig:
    """The whole configuration of a policy; `settings`, the backbone's, are changed to what it needs.

    Args:
        path: where its weights are; None: they are new.
        images_of: the model whose preprocessor gives the mean and deviation of images; None: nothing.
    """
    cut_layers(settings, config.num_layers)
    if hasattr(getattr(settings, "vision_config", None), "vision_use_head"):
        settings.vision_config.vision_use_head = False  # SigLIP's pooling, which nothing reads
    fit_vocabulary(settings, config, path)
    filled = {**asdict(config), **image_settings(config, settings, images_of, process.cache_dir)}
    if config.head == "tokens" and config.action_tokenizer != "bins":
        filled["action_tokenizer"] = read_fast(config.action_tokenizer)
    policy_config = VLAConfig(**{**filled, "config": settings.to_dict()})
    policy_config.llm_loss_weight = process.llm_loss_weight
    return policy_config


def load_for_adapter(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> VLA:
    """See `models.vla.load_base`. A base that existed nowhere else has been saved as a whole policy."""
    if Path(place).is_dir() and saved_config(Path(place)).get("model_type") == VLAConfig.model_type:
        return load_checkpoint(VLA, place)
    config = VLAConfig(**{name: value for name, value in saved_config(folder).items() if name != "model_type"})
    is_causal_lm = not is_vlm(stored_settings(place, cache_dir, trust_remote_code))
    settings = AutoConfig.for_model(**config.config)
    return with_weights(config, settings, place, is_causal_lm, cache_dir, trust_remote_code).eval()


def saved_policy(process: Any) -> dict[str, Any] | None:
    """The configuration of the policy from whose weights a later stage starts; None if it starts from none of ours."""
    if not (process.is_pretrained or process.load_pretrain):
        return None
    saved = saved_config(Path(process.model_name_or_path).expanduser())
    return saved if saved.get("model_type") == VLAConfig.model_type else None


def saved_settings(config: Config, process: Any) -> PreTrainedConfig:
    """The configuration of a saved policy's backbone; ValueError if it is damaged."""
    try:
        return AutoConfig.for_model(**config.config)
    except Exception as error:  # each configuration checks in its own way
        place = f"{process.model_name_or_path}: config.json"
        raise ValueError(f"{place} describes no backbone ({one_line(error)}); take another checkpoint") from None


def backbone_settings(config: Config, path: str | None, process: Any) -> tuple[PreTrainedConfig, bool]:
    """The configuration of the vision-language model, and whether only its language model is pretrained.

    Raises:
        ValueError: nothing describes it, or a path and `model.config` contradict each other.
    """
    if path is None:
        if config.config is None:
            raise ValueError(
                "`model: {name: vla}` needs `model_name_or_path` (a vision-language model, by hub id or folder) or "
                "`model.config` with the model_type of a new one"
            )
        return new_settings(config.config, {}), False
    settings = stored_settings(path, process.cache_dir, process.trust_remote_code)
    if is_vlm(settings):
        if config.config is not None:
            raise ValueError(
                f"`model.config` describes a new backbone, but `model_name_or_path: {path}` has one; set one of them "
                "to null"
            )
        return settings, False
    if config.config is None:
        raise ValueError(
            f"`model_name_or_path: {path}` is a {settings.model_type} without a vision tower; describe a backbone "
            "around it by `model.config`: {model_type: smolvlm, vision_config: {…}}"
        )
    around = new_settings({**config.config, "text_config": settings.to_dict()}, {})
    around.tie_word_embeddings = settings.tie_word_embeddings
    return around, True


def stored_settings(
    place: str, cache_dir: str | None, trust_remote_code: bool, named: str = "model_name_or_path"
) -> PreTrainedConfig:
    """The configuration of the model at `place`, the value of the key `named`: a hub id, a folder or a .gguf file."""
    source, options, _ = pretrained_source(place)
    shown = f"`{named}: {place}`"
    return from_files(AutoConfig, source, shown, trust_remote_code, cache_dir=cache_dir, **options)


def is_vlm(settings: PreTrainedConfig) -> bool:
    return type(settings) in AutoModelForImageTextToText._model_mapping


def cut_layers(settings: PreTrainedConfig, num_layers: int | None) -> None:
    """Keep the first layers of the language model.

    Raises:
        ValueError: it has fewer.
    """
    text = settings.get_text_config()
    if num_layers is None:
        return
    if num_layers > text.num_hidden_layers:
        raise ValueError(
            f"model.num_layers: {num_layers} but the language model has {text.num_hidden_layers}; lower it"
        )
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]


def fit_vocabulary(settings: PreTrainedConfig, config: Config, path: str | None) -> None:
    """Give a language model a token for each of the tokenizer's; a larger vocabulary, given or pretrained, stays.

    Raises:
        ValueError: the tokenizer has tokens that the described language model does not know.
    """
    text = settings.get_text_config()
    if config.vocab_size is None:
        raise ValueError("model.vocab_size is missing; the data set's dims must give it")
    if path is not None:  # `with_weights` adds tokens to those of the weights
        text.vocab_size = max(config.vocab_size, text.vocab_size)
    elif "vocab_size" in (config.config or {}).get("text_config", {}):
        refuse_tokens(config, text)
    else:
        text.vocab_size = config.vocab_size


def refuse_tokens(config: Config, text: PreTrainedConfig) -> None:
    """Raise ValueError if the data has tokens that a language model does not know, and that it cannot get."""
    if config.vocab_size > text.vocab_size:
        raise ValueError(
            f"the data has {config.vocab_size} tokens but the language model knows {text.vocab_size}; use its own "
            "tokenizer"
        )


def image_settings(
    config: Config, settings: PreTrainedConfig, place: str | None, cache_dir: str | None
) -> dict[str, Any]:
    """Size, mean and deviation of the images that the backbone sees: as given, else as it was trained.

    Raises:
        ValueError: the backbone takes no images of this size.
    """
    trained = preprocessor(place, cache_dir) if place else {}
    size = image_side(config.image_size, settings) if config.num_images else config.image_size
    names = ("image_mean", "image_std")
    return {"image_size": size} | {name: getattr(config, name) or trained.get(name) or [0.5] * 3 for name in names}


def preprocessor(place: str, cache_dir: str | None) -> dict[str, Any]:
    """What a model's files say of its images; empty if they say nothing. transformers 5 saves it with the processor."""
    return json_file(place, PROCESSOR, cache_dir).get("image_processor") or json_file(place, PREPROCESSOR, cache_dir)


def json_file(place: str, name: str, cache_dir: str | None) -> dict[str, Any]:
    """The content of a file of the model at `place`, a folder or a hub id; empty without it."""
    try:
        file = Path(place, name)
        if not file.parent.is_dir():
            file = Path(cached_file(place, name, cache_dir=cache_dir, **MAY_BE_MISSING) or file)
        return safe_read.read_json(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} of `model_name_or_path: {place}` cannot be read ({one_line(error)})") from None


def image_side(wanted: int | None, settings: PreTrainedConfig) -> int:
    """Pixels of a side of the images that a backbone sees."""
    vision = settings.vision_config
    native, patch = (_first(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    unit = patch * (getattr(vision, "spatial_merge_size", None) or getattr(settings, "scale_factor", None) or 1)
    size = wanted or native or USUAL_SIZE // unit * unit or unit
    if native is not None and size != native and not (hasattr(settings, "scale_factor") and size < native):
        raise ValueError(f"model.image_size: {size} but this backbone was built for {native}; use that, or null")
    if size % unit:
        raise ValueError(
            f"model.image_size: {size} is not a multiple of {unit}, the pixels of one token; use "
            f"{max(1, round(size / unit)) * unit}"
        )
    return size


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def check_losses(config: Any) -> None:
    """Raise ValueError if the backbone would have no loss to learn from."""
    if config.detach_backbone and not config.target_tokens:
        raise ValueError(
            "model.detach_backbone leaves the backbone without a loss; set use_reasoning, or freeze_backbone instead"
        )


def with_weights(
    config: VLAConfig,
    settings: PreTrainedConfig,
    place: str,
    is_causal_lm: bool,
    cache_dir: str | None,
    trust_remote_code: bool,
) -> VLA:
    """Build a policy with the pretrained backbone, or language model, at `place`; all else is its `new_weights`."""
    source, _, options = pretrained_source(place)
    options |= {"cache_dir": cache_dir, "dtype": torch.float32}
    shown, text = f"`model_name_or_path: {place}`", settings.get_text_config()
    needed = text.vocab_size
    text.vocab_size = known = stored_settings(place, cache_dir, trust_remote_code).get_text_config().vocab_size
    if not is_causal_lm:
        kind = AutoModelForImageTextToText
        pretrained, new = _load_quietly(kind, source, shown, trust_remote_code, config=settings, **options)
        add_tokens(pretrained, needed)
        vlm, prefix = pretrained.base_model, f"{pretrained.base_model_prefix}."
        new = {f"backbone.vlm.{name.removeprefix(prefix)}" for name in new if name.startswith(prefix)}
    else:
        pretrained, _ = _load_quietly(AutoModelForCausalLM, source, shown, trust_remote_code, config=text, **options)
        add_tokens(pretrained, needed)
        text.vocab_size = needed
        vlm = AutoModel.from_config(settings)
        name = language_model_name(vlm)
        setattr(vlm, name, pretrained.base_model)
        new = {f"backbone.vlm.{other}" for other, _ in vlm.named_parameters() if not other.startswith(f"{name}.")}
    policy = VLA(config, vlm)
    names = {name for name, _ in policy.named_parameters()}
    if isinstance(head := getattr(policy.backbone, "lm_head", None), nn.Module):
        head.load_state_dict(pretrained.get_output_embeddings().state_dict())
    policy.loaded_from = str(Path(source, options["gguf_file"])) if "gguf_file" in options else place
    policy.notes = [f"{needed - known} tokens are new to the language model of {place}"] if needed > known else []
    policy.new_weights = {name for name in names if not name.startswith("backbone.") or name in new}
    return policy


@torch.no_grad()
def add_tokens(model: PreTrainedModel, count: int) -> None:
    """Enlarge a vocabulary to `count` tokens; the new ones are the mean of the others, in and out."""
    known = model.config.get_text_config().vocab_size
    if count == known:
        return
    model.resize_token_embeddings(count, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            layer.weight[known:] = layer.weight[:known].mean(dim=0)


def _load_quietly(*arguments: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """`load_model` without transformers' table of the layers that are left out."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return load_model(*arguments, **options)
    finally:
        logging.set_verbosity(verbosity)
