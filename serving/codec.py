"""Messages: msgpack with NumPy arrays as maps of `data`, `dtype` and `shape`, the format of openpi's clients."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

KINDS = "biuf"  # of NumPy types: booleans, integers, floats; no objects, structures or text


def pack(value: Any) -> bytes:
    """Plain values, arrays and NumPy numbers as one message."""
    return msgpack.packb(value, default=_to_map)


def unpack(message: bytes) -> Any:
    """The value of a message.

    Raises:
        ValueError: not msgpack, or an array whose type, shape and data do not fit each other.
    """
    try:
        return msgpack.unpackb(message, object_hook=_from_map)
    except msgpack.UnpackException as error:
        raise ValueError(f"not msgpack: {error or type(error).__name__}") from None


def _to_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in KINDS:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _from_map(value: dict[Any, Any]) -> Any:
    if b"__npgeneric__" in value:
        return _type_of(value).type(value.get(b"data"))
    if b"__ndarray__" not in value:
        return value
    dtype, shape, data = _type_of(value), value.get(b"shape"), value.get(b"data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array has the shape {shape!r}; give a list of sizes")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of {dtype.str} with shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _type_of(value: dict[Any, Any]) -> np.dtype:
    name = value.get(b"dtype")
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in KINDS:
        raise ValueError(f"an array has the dtype {name!r}; give a number type such as '<f4' or '|u1'")
    return dtype
