"""Nested state as two files that nothing has to unpickle: NAME.json holds its shape, NAME.safetensors its tensors.

JSON has no tuples, no keys but strings, no infinity and no tensors; each stands there as a dict with one marked key:

    {"$tensor": "state.0.exp_avg"}   {"$tuple": […]}   {"$dict": [[key, value], …]}   {"$float": "inf"}
    {"$dtype": "float32"}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from storage.atomic import write_text

TENSOR, TUPLE, DICT, FLOAT, DTYPE, STRIDE = "$tensor", "$tuple", "$dict", "$float", "$dtype", "stride"
PLAIN = (str, int, bool, type(None))


def split(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A state as a JSON value and the tensors that it refers to by name, which are the same objects, not copies.

    Raises:
        TypeError: the state holds what neither file can; the text says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _plain(state, "", tensors), tensors


def _plain(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = path or "value"
        while name in tensors:  # `a.b` in `c` and `b.c` in `a`
            name += "~"
        tensors[name] = value
        dense = value.is_contiguous() or value.dim() == 0
        return {TENSOR: name} if dense else {TENSOR: name, STRIDE: list(value.stride())}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _plain(each, _join(path, key), tensors) for key, each in value.items()}
        pairs = [[_plain(key, "", tensors), _plain(each, _join(path, key), tensors)] for key, each in value.items()]
        return {DICT: pairs}
    if isinstance(value, (list, tuple)):
        found = [_plain(each, _join(path, index), tensors) for index, each in enumerate(value)]
        return found if isinstance(value, list) else {TUPLE: found}
    if type(value) is float:
        return value if math.isfinite(value) else {FLOAT: repr(value)}
    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy's
        return _plain(value.item(), path, tensors)
    raise TypeError(f"state `{path}` is a {type(value).__name__}, which a checkpoint without pickles cannot hold")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def write(folder: Path, name: str, plain: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes what `split` returned, its tensors perhaps copied meanwhile: NAME.json and, if any, NAME.safetensors."""
    if tensors:
        write_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / f"{name}.json", json.dumps(plain, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors by name. The format refuses those that share storage or lie in another order of axes: they are copied."""
    seen: set[int] = set()
    ready = {}
    for name, each in tensors.items():
        each = each.detach()
        storage = each.untyped_storage()
        is_own = storage.nbytes() == each.numel() * each.element_size() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        ready[name] = each.contiguous() if is_own else each.contiguous().clone()
    save_file(ready, str(path), metadata={"format": "pt"})


def read(folder: Path, name: str) -> Any:
    """The state that was written as `name`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    path = folder / f"{name}.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise TypeError(f"{path.name} is not a mapping")
        tensors = load_file(folder / f"{name}.safetensors") if (folder / f"{name}.safetensors").is_file() else {}
        return join(plain, tensors)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {path.name}") from None
    except KeyError as error:
        raise ValueError(f"{folder}: {name}.safetensors has no tensor {error}, which {path.name} names") from error
    except (ValueError, TypeError, RecursionError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: {name} is damaged ({' '.join(str(error).split())})") from error


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is no type of torch's")
    return found


def join(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that `split` made into a JSON value and tensors by name."""
    if isinstance(value, list):
        return [join(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        found = tensors[value[TENSOR]]
        if STRIDE not in value:
            return found.clone()  # its own memory, not the file's, which may be deleted or damaged while it is used
        return torch.empty_strided(found.shape, value[STRIDE], dtype=found.dtype).copy_(found)
    if TUPLE in value:
        return tuple(join(each, tensors) for each in value[TUPLE])
    if DICT in value:
        return {join(key, tensors): join(each, tensors) for key, each in value[DICT]}
    if FLOAT in value:
        return float(value[FLOAT])
    if DTYPE in value:
        return _dtype(value[DTYPE])
    return {key: join(each, tensors) for key, each in value.items()}
