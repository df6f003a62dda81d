"""A component's `Config` as a transformers configuration, and reading models that somebody else may have made.

A checkpoint's config.json has the same keys as `Config`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from storage.hub import hub_is_reachable

HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
MOST_READ = 10_000  # members of a list in a .gguf file's header; those of a configuration are one a layer
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Errors of transformers about missing or wrong files whose message is clear without the error's type.
KNOWN_ERRORS = (OSError, ValueError, ImportError, KeyError)


def pretrained_config(config: type, model_type: str, name: str, module: str) -> type[PreTrainedConfig]:
    """Return the `PreTrainedConfig` class with the fields, defaults and `__post_init__` checks of `config`.

    Args:
        config: a component's `Config`.
        model_type: the network's name in config.json.
        name, module: where the result is bound (`name = pretrained_config(…)` in `module`), for pickling.
    """
    keys = [item.name for item in fields(config)]

    def __init__(self: PreTrainedConfig, **values: Any) -> None:
        checked = config(**{key: values.pop(key) for key in keys if key in values})
        for key, value in asdict(checked).items():
            setattr(self, key, value)
        PreTrainedConfig.__init__(self, **values)

    # transformers makes every configuration a dataclass, but keeps an `__init__` in the class body.
    body = {"__init__": __init__, "model_type": model_type, "__module__": module, "__doc__": config.__doc__}
    return type(name, (PreTrainedConfig,), body)


def load_checkpoint(model: type[PreTrainedModel], folder: str | Path) -> PreTrainedModel:
    """Load the network saved in `folder`, in evaluation mode, without access to a hub.

    Raises:
        ValueError: there is no checkpoint, it is of another network, or its weights do not fit its config.
    """
    wanted, stored = model.config_class.model_type, saved_config(Path(folder)).get("model_type")
    if stored != wanted:
        # Keel's networks have one name as component and as model type; all others are transformers'.
        is_ours = str(stored).isidentifier() and importlib.util.find_spec(f"models.{stored}") is not None
        component = stored if is_ours else "auto"
        raise ValueError(f"{folder}: has a {stored!r} model, not {wanted!r}; --set model.name={component} takes it")
    return load_whole_model(model, folder, str(folder), local_files_only=True)


def saved_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: has no config.json; give a run's output folder or a checkpoint in it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); take another checkpoint") from None
    return content


def refuse_other_labels(config: Any, labels: Sequence[str] | None, shown: str) -> None:
    """Compare the labels of a model with those of the data: other names at the same places would be scored as these.

    Args:
        config: the trained model's.
        labels: the data's; None: it has none.

    Raises:
        ValueError: the first difference.
    """
    trained = list((getattr(config, "id2label", None) or {}).values())
    if labels is None or trained == list(labels):
        return
    pairs = enumerate(itertools.zip_longest(trained, labels, fillvalue="nothing"))
    place, (there, here) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"{shown} was trained on other labels than the data's: label {place} is {there} there and {here} in the data; "
        "use data with its labels"
    )


def load_model(
    kind: Any, place: str | Path, shown: str, trust_remote_code: bool = False, strict: bool = False, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load a model as `from_files`; return also the names of parameters that the files do not fill.

    Args:
        strict: return the names of unexpected weights, too.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = from_files(kind, place, shown, trust_remote_code, **options)
    unfilled = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return model, unfilled | (set(report["unexpected_keys"]) if strict else set())


def load_whole_model(
    kind: Any, place: str | Path, shown: str, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """Load a model as `from_files`; ValueError if a weight stays random, of which transformers only warns."""
    model, unfilled = load_model(kind, place, shown, trust_remote_code, **options)
    if unfilled:
        raise ValueError(
            f"{shown}: {len(unfilled)} weights missing or of another shape, first {min(unfilled)}; "
            "choose the architecture that these weights were saved from"
        )
    return model


def from_files(kind: Any, place: str | Path, shown: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """Call `kind.from_pretrained(place)`: weights only from safetensors, code only if trusted, any error in one line.

    Args:
        kind: a class of transformers, of a configuration or a model, including the Auto classes.
        shown: how the error names the place.

    Raises:
        ValueError: nothing is there, it is damaged, pickled, or needs code that is not trusted.
    """
    is_offline = is_hub_id(place) and not hub_is_reachable()
    if is_offline:
        options["local_files_only"] = True  # without it, each file is asked for again and again
    is_model = kind is not AutoConfig and not (isinstance(kind, type) and issubclass(kind, PreTrainedConfig))
    try:
        if is_model and "gguf_file" not in options:
            _refuse_pickles(Path(place))
            os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # or transformers asks the hub to convert
            options["use_safetensors"] = True
        with bars_as_set(), long_lists_counted() if "gguf_file" in options else contextlib.nullcontext():
            # If `trust_remote_code` were not given, transformers would ask at the terminal.
            return kind.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # a damaged or hostile file may raise anything
        is_absent = is_offline and not is_cached(str(place), options.get("cache_dir"))
        text = f"{place} is not in the cache and the hub cannot be reached" if is_absent else reason(error)
        raise ValueError(f"{shown} cannot be loaded: {text}") from error


@contextlib.contextmanager
def bars_as_set() -> Iterator[None]:
    """Inside, bars of tqdm are hidden if those of transformers are: that of .gguf files does not follow its setting."""
    if transformers_logging.is_progress_bar_enabled():
        yield
        return
    from tqdm.auto import tqdm

    original = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(original, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = original


@contextlib.contextmanager
def long_lists_counted() -> Iterator[None]:
    """Inside, the long lists in a .gguf file's header, those of its vocabulary, are counted and not read.

    Neither a configuration nor weights need them, and to read them takes seconds each time.
    """
    from gguf import GGUFReader, GGUFValueType

    read = GGUFReader._get_field_parts

    def parts(reader: Any, start: int, kind: int) -> tuple[int, list, list[int], list]:
        if kind != GGUFValueType.ARRAY or reader.byte_order != "I":
            return read(reader, start, kind)
        member, count = struct.unpack_from("=IQ", reader.data, start)
        width, end = reader.gguf_scalar_to_np.get(member), start + struct.calcsize("=IQ")
        if count <= MOST_READ or (width is None and member != GGUFValueType.STRING):
            return read(reader, start, kind)
        if width is not None:
            end += count * np.dtype(width).itemsize
        for _ in range(count if width is None else 0):
            end += 8 + struct.unpack_from("=Q", reader.data, end)[0]
        if end > len(reader.data):
            raise ValueError("it ends within a list")
        return end - start, [np.zeros(1, np.uint8)], [0] * count, [GGUFValueType.ARRAY, GGUFValueType(member)]

    GGUFReader._get_field_parts = parts
    try:
        yield
    finally:
        GGUFReader._get_field_parts = read


def is_hub_id(place: str | Path) -> bool:
    """Whether a name stands for a model of a hub: it is no path that exists, and could not be one."""
    return isinstance(place, str) and not os.path.exists(place) and re.fullmatch(HUB_ID, place) is not None


def is_cached(hub_id: str, cache_dir: str | None) -> bool:
    """Whether the configuration of a hub's model has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json", cache_dir=cache_dir), str)


def one_line(error: Exception) -> str:
    """Return the whole message of an error as one line."""
    return " ".join(str(error).split())


def reason(error: Exception) -> str:
    """Return an error that transformers raised as one line for the user."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it brings code of its own, which runs only with trust_remote_code: true"
    if "use_safetensors" in text:
        return f"it has no {WEIGHTS}; pickled weights are not read, because reading a pickle can run code"
    line = text.split("\n")[0]
    if isinstance(error, SafetensorError):
        return f"its weights are damaged ({line})"
    return line if line and isinstance(error, KNOWN_ERRORS) else f"{type(error).__name__} {line}".strip()


def _refuse_pickles(place: Path) -> None:
    """Refuse weights that are not safetensors, or shards in other folders; files on a hub are not examined.

    Raises:
        ValueError: the reason, with the file.
    """
    names = [place.name] if place.is_file() else sorted(os.listdir(place)) if place.is_dir() else []
    weights = {}
    if "config.json" in names:
        weights["config.json"] = [saved_config(place).get("transformers_weights") or WEIGHTS]
    if SHARDS in names and WEIGHTS not in names:
        weights[SHARDS] = json.loads((place / SHARDS).read_text(encoding="utf-8"))["weight_map"].values()
    for file, name in ((file, name) for file, values in weights.items() for name in values):
        if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise ValueError(f"{place / file} names weights {name!r}; they must be a .safetensors file beside it")
    pickled = next((name for name in names if name.endswith(PICKLED)), None)
    if pickled is not None and not any(name.endswith(".safetensors") or name == SHARDS for name in names):
        raise ValueError(
            f"its weights are a pickle ({pickled}), and reading a pickle can run code; save the model again with "
            f"save_pretrained, which writes {WEIGHTS}"
        )
