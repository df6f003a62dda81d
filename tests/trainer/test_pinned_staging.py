"""Host memory for copies of tensors: how it is allocated, and when the copies are complete."""

import random
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import Regression
from torch import nn
from transformers.pytorch_utils import id_tensor_storage

from trainer.checkpointing import contents
from trainer.checkpointing.contents import StagingBuffers, packed

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


def some_tensors(seed):
    """Many small ones and a few large ones, of several types; also scalars."""
    generator = random.Random(seed)
    shapes = [(generator.randrange(1, 400), generator.randrange(1, 300)) for _ in range(generator.randrange(1, 40))]
    shapes += [(generator.randrange(1, 2000),) for _ in range(generator.randrange(40))] + [()]
    return {
        f"weight{number}": torch.randint(0, 2, shape).to(generator.choice(DTYPES))
        for number, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("seed", range(5))
def test_tensors_share_a_few_blocks(tmp_path, seed):
    """torch rounds each allocation up to a power of two; safetensors writes one tensor per storage."""
    tensors, sizes = some_tensors(seed), []

    def memory(size):
        sizes.append(size)
        return torch.full((size,), 255, dtype=torch.uint8)

    buffers = packed(tensors, memory)
    needed = sum(tensor.nbytes + contents.ALIGNMENT for tensor in tensors.values())
    assert all(size & (size - 1) == 0 for size in sizes)
    assert sum(sizes) <= 1.25 * needed and len(sizes) <= 12
    for name, each in tensors.items():
        buffers[name].copy_(each)
    assert all(torch.equal(buffers[name], each) and buffers[name].dtype == each.dtype for name, each in tensors.items())
    assert len({id_tensor_storage(buffer) for buffer in buffers.values()}) == len(tensors)
    save_file(buffers, tmp_path / "model.safetensors")
    assert all(torch.equal(each, tensors[name]) for name, each in load_file(tmp_path / "model.safetensors").items())


def test_one_large_tensor():
    sizes = []
    tensors = {"a": torch.zeros(2**16 + 1, dtype=torch.uint8), "b": torch.zeros(3)}
    packed(tensors, lambda size: (sizes.append(size), torch.empty(size, dtype=torch.uint8))[1])
    assert sizes == [2**17]  # the small one fits beside it
    assert packed({}, None) == {}


class OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on the second GPU."""

    device = property(lambda self: torch.device("cuda", 1))


@pytest.fixture
def gpu(monkeypatch):
    """The CUDA calls, in order; CUDA itself is replaced."""
    calls = []

    class Event:
        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            calls.append(("record", stream))

        def synchronize(self):
            calls.append(("synchronize", threading.current_thread().name))

    def copy(buffer, tensor):
        calls.append(("copy", tuple(tensor.shape)))
        with torch._C.DisableTorchFunctionSubclass():
            buffer.copy_(tensor)

    monkeypatch.setattr(contents, "_copy", copy)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: calls.append((str(device), threading.current_thread().name))
    )
    return calls


def test_one_event_per_device_after_all_copies(gpu, capfd):
    """Memory that cannot be pinned is reported once."""
    tensors = {"a": torch.rand(3, 2).as_subclass(OnGpu), "b": torch.rand(4).as_subclass(OnGpu), "n": 5}
    copies = StagingBuffers()
    taken = copies.copy("model", {**tensors, "tied": tensors["a"]})
    assert gpu == [("copy", (3, 2)), ("copy", (4,)), ("record", "stream of cuda:1")]
    gpu.clear()
    thread = threading.Thread(target=copies.wait, name="save")
    thread.start()
    thread.join()
    assert gpu == [("cuda:1", "save"), ("synchronize", "save")]
    assert taken["tied"] is taken["a"] and taken["n"] == 5
    assert all(torch.equal(taken[name], tensors[name].as_subclass(torch.Tensor)) for name in "ab")
    again = copies.copy("model", tensors)
    assert again["a"] is taken["a"] and again["b"] is taken["b"]  # memory is reused
    copies.copy("optimizer", tensors)
    assert copies.copy("optimizer", tensors)["a"] is not taken["a"]
    assert capfd.readouterr().err.count("could not be pinned") == 1


def test_another_shape_gets_new_memory(gpu):
    copies = StagingBuffers()
    first = copies.copy("model", {"a": torch.ones(3).as_subclass(OnGpu), "b": torch.ones(2).as_subclass(OnGpu)})
    second = copies.copy("model", {"a": torch.zeros(5).as_subclass(OnGpu), "b": torch.ones(2).as_subclass(OnGpu)})
    assert second["a"].shape == (5,) and second["b"] is first["b"] and first["a"].tolist() == [1, 1, 1]
    empty = copies.copy("model", {"none": torch.ones(0, 3).as_subclass(OnGpu)})["none"]
    assert empty.shape == (0, 3)


# ---- CPU tensors ----


class Tied(Regression):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.linear.weight.requires_grad_(False)

    def forward(self, x, y, **context):
        self.seen += len(x)
        return super().forward(x, y)


def test_copies_do_not_change_and_constant_tensors_are_not_copied():
    model = Tied()
    copies = StagingBuffers()
    frozen = frozenset({model.linear.weight.data_ptr()})
    taken = copies.copy("model", model.state_dict(), frozen)
    assert taken["linear.weight"].data_ptr() == model.linear.weight.data_ptr()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for each in [*model.parameters(), *model.buffers()]:
            if each.data_ptr() not in frozen:
                each.add_(1)
    assert all(torch.equal(taken[name], before[name]) for name in before)
    again = copies.copy("model", model.state_dict(), frozen)
    assert all(again[name] is taken[name] for name in taken if name != "linear.weight")  # memory is reused
    assert torch.equal(again["norm.bias"], model.norm.bias)


def test_tied_weights_stay_tied():
    layer = nn.Linear(3, 3)
    taken = StagingBuffers().copy("m", {"a": layer.weight, "b": layer.weight, "c": layer.weight[1]})
    assert taken["a"] is taken["b"] and taken["c"] is not taken["a"] and torch.equal(taken["c"], layer.weight[1])


def test_other_values_are_returned_as_they_are():
    taken = StagingBuffers().copy("m", {"extra": {"scale": 1}, "a": torch.ones(2)})
    assert taken["extra"] == {"scale": 1} and torch.equal(taken["a"], torch.ones(2))
