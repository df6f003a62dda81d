"""State written to files and read back, against the state itself."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.serialization import rng_state, state_dict_io


def through_files(folder, state):
    state_dict_io.write(folder, "state", *state_dict_io.split(state))
    return state_dict_io.read(folder, "state")


def test_round_trip(tmp_path):
    state = {
        "tensors": {
            0: torch.randn(3, 4),
            1: torch.tensor(7.5),
            2: torch.zeros(0, 3),
            3: torch.ones(2, dtype=torch.bool),
        },
        "half": [torch.randn(4).bfloat16(), torch.randn(4).half(), torch.randint(0, 255, (5,), dtype=torch.uint8)],
        "numbers": (1, 0.1, -0.0, 1e-300, True, None, "text", 2**60),
        "odd": [math.inf, -math.inf, (), {}, [], {"$tensor": "no tensor"}, {(1, "a"): {"deep": (1, (2, [3]))}}],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True)],
        "dtype": torch.bfloat16,
        "a.b": {"c": torch.ones(1)},
        "a": {"b.c": torch.zeros(1)},
    }
    found = through_files(tmp_path, state)
    flat, same = torch.utils._pytree.tree_flatten(found), torch.utils._pytree.tree_flatten(state)
    assert flat[1] == same[1]
    for mine, theirs in zip(flat[0], same[0], strict=True):
        if isinstance(theirs, torch.Tensor):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        else:
            assert mine == theirs and (isinstance(theirs, np.generic) or type(mine) is type(theirs))
    assert math.copysign(1, found["numbers"][2]) == -1
    assert math.isnan(through_files(tmp_path, math.nan))


def test_strides_are_restored(tmp_path):
    """Fused kernels need the memory layout of the weight."""
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = through_files(tmp_path, {"exp_avg": weight, "t": torch.randn(3, 4).t()})
    assert found["exp_avg"].stride() == weight.stride() and torch.equal(found["exp_avg"], weight)
    assert found["t"].stride() == (1, 4)


def test_tensors_do_not_map_their_file(tmp_path):
    """The checkpoint may be deleted while the run continues."""
    tensors = {"a": torch.arange(2**16), "b": torch.arange(12.0).reshape(3, 4).T}
    plain, split = state_dict_io.split(tensors)
    state_dict_io.write(tmp_path, "x", plain, split)
    back = state_dict_io.read(tmp_path, "x")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    found = through_files(tmp_path, {"whole": whole, "same": whole, "part": whole[2:4]})
    assert torch.equal(found["same"], whole) and torch.equal(found["part"], torch.tensor([2.0, 3.0]))


class Strange:
    pass


def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"state `a.1.b` is a Strange"):
        state_dict_io.split({"a": [0, {"b": Strange()}]})


def test_nothing_is_ever_unpickled(tmp_path, monkeypatch):
    through_files(tmp_path, {"step": torch.tensor(3.0), "lr": 0.1})
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    assert state_dict_io.read(tmp_path, "state")["lr"] == 0.1
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": {"$tensor": "step"}, "lr": 0.1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", None, "has no state.json"),
        ("state.json", b'{"a"', "state is damaged"),
        ("state.json", b"[" * 100_000, "state is damaged"),
        ("state.json", b"\xff", "state is damaged"),
        ("state.json", b'{"$dtype": "os"}', "state is damaged"),
        ("state.json", b'{"$float": "x"}', "state is damaged"),
        ("state.json", b'{"$dict": [1]}', "state is damaged"),
        ("state.safetensors", None, "no tensor 'a'"),
        ("state.safetensors", b"123", "state is damaged"),
        ("state.safetensors", b"\xff" * 64, "state is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path, name, content, message):
    through_files(tmp_path, {"a": torch.ones(3)})
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        state_dict_io.read(tmp_path, "state")
    assert "\n" not in str(raised.value)


def test_generators_are_restored():
    def draw():
        import random

        return [random.random(), random.gauss(0, 1), *np.random.rand(2), np.random.randn(), *torch.rand(2).tolist()]

    draw()  # gauss and randn cache a value for the next call
    states = json.loads(json.dumps(rng_state.states()))
    truth = [draw() for _ in range(3)]
    rng_state.restore(states)
    assert [draw() for _ in range(3)] == truth
    rng_state.start(1)
    assert draw() != truth[0]


def test_new_generators_differ_between_ranks():
    drawn = set()
    for process in range(4):
        rng_state.start(42, 100, process)
        drawn.add((float(torch.rand(())), float(np.random.rand())))
    assert len({each[0] for each in drawn}) == len({each[1] for each in drawn}) == 4
