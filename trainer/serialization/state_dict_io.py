"""Nested state as two files without pickles: NAME.json holds its structure, NAME.safetensors its tensors.

JSON has no tuples, no keys but strings, no infinity and no tensors. Each is stored as a dict with one marked key:

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
    """Split a state into a JSON value and the tensors that it refers to by name. The tensors are not copied.

    Raises:
        TypeError: the state holds a value that neither file can hold; the text gives its path.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _plain(state, "", tensors), tensors


def _plain(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return _tensor_reference(value, path, tensors)
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _plain(item, _join(path, key), tensors) for key, item in value.items()}
        return {DICT: [[_plain(key, "", tensors), _plain(value[key], _join(path, key), tensors)] for key in value]}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, _join(path, index), tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TUPLE: items}
    if type(value) is float:
        return value if math.isfinite(value) else {FLOAT: repr(value)}
    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy scalar
        return _plain(value.item(), path, tensors)
    raise TypeError(f"state `{path}` is a {type(value).__name__}, which a checkpoint without pickles cannot hold")


def _tensor_reference(tensor: torch.Tensor, path: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    name = path or "value"
    while name in tensors:  # `a.b` in `c`, and `b.c` in `a`
        name += "~"
    tensors[name] = tensor
    is_dense = tensor.is_contiguous() or tensor.dim() == 0
    return {TENSOR: name} if is_dense else {TENSOR: name, STRIDE: list(tensor.stride())}


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def write(folder: Path, name: str, plain: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write what `split` returned: NAME.json and, if there are tensors, NAME.safetensors."""
    if tensors:
        write_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / f"{name}.json", json.dumps(plain, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name. Those that share storage or are not contiguous, which the format refuses, are copied."""
    seen: set[int] = set()
    writable = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        has_own_storage = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        writable[name] = tensor.contiguous() if has_own_storage else tensor.contiguous().clone()
    save_file(writable, str(path), metadata={"format": "pt"})


def read(folder: Path, name: str) -> Any:
    """Return the state that was written as `name`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    path, tensor_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise TypeError(f"{path.name} is not a mapping")
        return join(plain, load_file(tensor_path) if tensor_path.is_file() else {})
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {path.name}") from None
    except KeyError as error:
        raise ValueError(f"{folder}: {tensor_path.name} has no tensor {error}, which {path.name} names") from error
    except (ValueError, TypeError, RecursionError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: {name} is damaged ({' '.join(str(error).split())})") from error


def join(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the state that `split` took apart."""
    if isinstance(value, list):
        return [join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        tensor = tensors[value[TENSOR]]
        if STRIDE not in value:
            return tensor.clone()  # its own memory: the mapped file may be deleted while the tensor is in use
        return torch.empty_strided(tensor.shape, value[STRIDE], dtype=tensor.dtype).copy_(tensor)
    if TUPLE in value:
        return tuple(join(item, tensors) for item in value[TUPLE])
    if DICT in value:
        return {join(key, tensors): join(item, tensors) for key, item in value[DICT]}
    if FLOAT in value:
        return float(value[FLOAT])
    if DTYPE in value:
        dtype = getattr(torch, value[DTYPE], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{value[DTYPE]} is not a dtype of torch")
        return dtype
    return {key: join(item, tensors) for key, item in value.items()}
