"""A component's `Config` as a transformers configuration, and reading models that somebody else may have made.

A checkpoint's config.json holds the same keys as `Config`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# What transformers raises where files are missing or wrong in a way that it knows; the message says it all.
KNOWN_ERRORS = (OSError, ValueError, ImportError, KeyError)


def pretrained_config(config: type, model_type: str, name: str, module: str) -> type[PreTrainedConfig]:
    """The `PreTrainedConfig` class with the fields, defaults and `__post_init__` checks of `config`.

    Args:
        config: a component's `Config`.
        model_type: what config.json calls the network.
        name, module: where the result is bound (`name = pretrained_config(…)` in `module`), for pickling.
    """
    own = [item.name for item in fields(config)]

    def __init__(self: PreTrainedConfig, **values: Any) -> None:
        checked = config(**{key: values.pop(key) for key in own if key in values})
        for key, value in asdict(checked).items():
            setattr(self, key, value)
        PreTrainedConfig.__init__(self, **values)

    # transformers makes every configuration a dataclass, but keeps an `__init__` found in the class body.
    body = {"__init__": __init__, "model_type": model_type, "__module__": module, "__doc__": config.__doc__}
    return type(name, (PreTrainedConfig,), body)


def load_checkpoint(model: type[PreTrainedModel], folder: str | Path) -> PreTrainedModel:
    """The network saved in `folder`, in evaluation mode; never looks at a hub.

    Raises:
        ValueError: no checkpoint there, one of another network, or one whose weights do not fit its config.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json; give a run's output folder or a checkpoint in it")
    wanted = model.config_class.model_type
    found = _settings(folder).get("model_type")
    if found != wanted:
        raise ValueError(
            f"{folder}: holds a {found!r} model, not {wanted!r}; --set model.name={_component(found)} takes it"
        )
    loaded, report = from_files(
        model, folder, str(folder), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_unfilled(report, str(folder))
    return loaded


def _component(model_type: Any) -> str:
    """The component whose networks config.json calls so: ours go by one name, all others are transformers'."""
    is_ours = str(model_type).isidentifier() and importlib.util.find_spec(f"models.{model_type}") is not None
    return str(model_type) if is_ours else "auto"


def _settings(folder: Path) -> dict[str, Any]:
    """What config.json holds."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); take another checkpoint") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (not a mapping); take another checkpoint")
    return found


def from_files(kind: Any, place: str | Path, shown: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained(place)`: weights from safetensors alone, code that comes with a model only where it is
    trusted, and whatever is wrong with the files in one line.

    Args:
        kind: a class of transformers, of a configuration or a model, an Auto class too.
        shown: how the error names the place.

    Raises:
        ValueError: nothing is there, it is damaged, pickled, or needs code that is not trusted.
    """
    is_model = kind is not AutoConfig and not (isinstance(kind, type) and issubclass(kind, PreTrainedConfig))
    if is_model and "gguf_file" not in options:
        refuse_pickles(Path(place), shown)
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else the hub is asked to convert such a model
        options["use_safetensors"] = True
    try:
        # Left open, `trust_remote_code` would be asked for at the terminal.
        return kind.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # a damaged or hostile file may raise anything
        raise ValueError(f"{shown} cannot be loaded: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The error that transformers raised, as one line for the user."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it brings code of its own, which runs only with trust_remote_code: true"
    if "use_safetensors" in text:
        return f"it has no {WEIGHTS}; weights that are pickled are not read, for reading a pickle can run code"
    line = text.split("\n")[0]
    if isinstance(error, SafetensorError):
        return f"its weights are damaged ({line})"
    return line if line and isinstance(error, KNOWN_ERRORS) else f"{type(error).__name__} {line}".strip()


def refuse_pickles(place: Path, shown: str) -> None:
    """Refuses weights that are no safetensors, or shards that lie elsewhere. What is on a hub is not looked at.

    Raises:
        ValueError: the reason, with the file.
    """
    names = [place.name] if place.is_file() else sorted(os.listdir(place)) if place.is_dir() else []
    if "config.json" in names:
        stored = _settings(place).get("transformers_weights")
        if stored is not None and not _is_plain(stored):
            raise ValueError(
                f"{place / 'config.json'} names weights {stored!r}: they are a .safetensors file beside it"
            )
    if not names or WEIGHTS in names:
        return
    if SHARDS in names:
        _refuse_shards(place / SHARDS)
    elif not any(name.endswith(".safetensors") for name in names):
        pickled = next((name for name in names if name.endswith(PICKLED)), None)
        if pickled is not None:
            raise ValueError(
                f"{shown} holds its weights as a pickle ({pickled}), and reading a pickle can run code; save the model "
                f"again with save_pretrained, which writes {WEIGHTS}"
            )


def _refuse_shards(index: Path) -> None:
    """Shards lie beside their index: a path out of its folder, or to a file of another kind, is somebody's trick."""
    try:
        stored = json.loads(index.read_text(encoding="utf-8"))
        shards = set(stored["weight_map"].values())
        stored["metadata"].get("total_size")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{index} is damaged ({reason}); restore it") from None
    for name in sorted(shards, key=str):
        if not _is_plain(name):
            raise ValueError(f"{index} names a shard {name!r}: shards are .safetensors files beside it")


def _is_plain(name: Any) -> bool:
    """Whether a name is that of a safetensors file in the very folder that names it."""
    return isinstance(name, str) and name == os.path.basename(name) and name.endswith(".safetensors")


def refuse_unfilled(report: dict, place: str) -> None:
    """Raise ValueError if `from_pretrained` reports weights left at random; it only warns of them."""
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    unfilled = sorted([*report["missing_keys"], *mismatched])
    if unfilled:
        raise ValueError(
            f"{place}: {len(unfilled)} weights missing or of another shape, first {unfilled[0]}; "
            "choose the architecture that these weights were saved from"
        )
