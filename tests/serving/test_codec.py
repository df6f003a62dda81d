"""Messages of the policy server: there and back, as openpi's clients write them, and hostile ones."""

import math

import msgpack
import numpy as np
import pytest

from serving.codec import pack, unpack


@pytest.mark.parametrize("dtype", ["?", "u1", "<i8", "<f2", "<f4", ">f8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_arrays_survive_bit_for_bit(dtype, shape):
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    for found in (unpack(pack({"a": values}))["a"], unpack(pack([values.T]))[0].T):
        assert found.dtype == values.dtype and found.shape == shape and found.tobytes() == values.tobytes()


def test_the_format():
    """Written out by hand: maps with these keys, as bytes."""
    array = {b"__ndarray__": True, b"data": b"\x01\x02\x03\x04\x05\x06", b"dtype": "|u1", b"shape": [2, 3]}
    number = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    message = msgpack.packb({"top": array, "gain": number, "text": "ä", "list": [1, None]})
    assert pack(unpack(message)) == message
    found = unpack(message)
    assert found["top"].tolist() == [[1, 2, 3], [4, 5, 6]] and found["gain"] == np.float32(2.5)


GOOD = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": bytes(7)}, "needs 8 bytes"),
        ({b"data": "12345678"}, "needs 8 bytes"),
        ({b"shape": [-2]}, "shape"),
        ({b"shape": [2**40, 2**40]}, "needs"),
        ({b"shape": 2}, "shape"),
        ({b"shape": [True, 2]}, "shape"),
        ({b"dtype": "O"}, "dtype 'O'"),
        ({b"dtype": "f4,f4"}, "dtype"),
        ({b"dtype": "nonsense"}, "dtype 'nonsense'"),
        ({b"dtype": 4}, "dtype 4"),
        ({b"dtype": None}, "dtype None"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    assert unpack(msgpack.packb({"a": GOOD}))["a"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=message):
        unpack(msgpack.packb({"a": GOOD | change}))


@pytest.mark.parametrize("message", [b"", b"\xc1", pack({"a": 1})[:-1], pack({"a": 1}) + b"\x00", b"\x81\x01\x02"])
def test_what_is_no_msgpack_is_refused(message):
    with pytest.raises(ValueError):
        unpack(message)


def test_objects_are_not_sent():
    for value in (object(), np.array([object()]), np.array(["text"])):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack(value)
