"""Count the bytes of training steps without allocating them: fake tensors have shapes, types and lifetimes, no values.

Forward, backward and the optimizer's own `step` are carried out, so no formula of a network or an optimizer is needed.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES, BATCH = "weights", "gradients", "optimizer", "averaged weights", "batch"
ACTIVATIONS, BUCKETS, GATHERED = "activations", "DDP buckets", "gathered by FSDP"
MOST_ASSUMED = 10_000


class Ledger(TorchDispatchMode):
    """The live storages of tensors by part, each counted once, and the moment when their sum was largest.

    Attributes:
        now, largest: part -> bytes, at this moment and at its own maximum.
        at_peak: part -> bytes when the sum of all parts was largest; `peak_phase` is the `phase` of that moment.
        assumed: phase -> how often code on the host has read a value of a tensor, or has chosen by a mask. Fake tensors
            have none: it got 1 or true, but after `MOST_ASSUMED` of them an error, since a loop may wait for another
            value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[weakref.ref, str, int]] = {}  # id -> reference, part, bytes
        self.now: dict[str, int] = defaultdict(int)
        self.largest: dict[str, int] = defaultdict(int)
        self.at_peak: dict[str, int] = {}
        self.phase, self.peak_phase, self.assumed = "set-up", "", defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        try:
            if is_pointwise_in_place(func) and isinstance(args[0], FakeTensor) and args[0].constant is None:
                result = args[0]  # of the same shape and type; such are most operators of an optimizer's step
            else:
                result = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            self._assume()
            kind = torch.bool if func is torch.ops.aten.equal.default else args[0].dtype
            return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
        except DynamicOutputShapeException:
            self._assume()
            result = chosen_by_true(func, args, kwargs or {})
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        self.add(leaf for leaf in leaves if isinstance(leaf, Tensor))
        return result

    def _assume(self) -> None:
        self.assumed[self.phase] += 1
        if self.assumed[self.phase] > MOST_ASSUMED:
            raise RuntimeError(f"more than {MOST_ASSUMED:,} values of tensors are read")

    def add(self, tensors: Iterable[Tensor], part: str | None = None) -> None:
        """Count the storages of tensors as `part`; None: as activations, unless they are counted already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            reference, before, size = self.storages.get(key, (None, None, 0))
            if before is not None and part in (None, before):
                continue
            if before is None:
                size = storage.nbytes()
                reference = weakref.ref(storage, lambda _, key=key: self._freed(key))
            else:
                self.now[before] -= size
            self.storages[key] = reference, part or ACTIVATIONS, size
            self.now[part or ACTIVATIONS] += size
        for name, size in self.now.items():
            self.largest[name] = max(self.largest[name], size)
        if sum(self.now.values()) > sum(self.at_peak.values()):
            self.at_peak, self.peak_phase = dict(self.now), self.phase

    def _freed(self, key: int) -> None:
        _, part, size = self.storages.pop(key)
        self.now[part] -= size


@functools.cache
def is_pointwise_in_place(func: Any) -> bool:
    """Whether an operator changes values of its first argument, which it returns, and nothing else."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    return torch.Tag.pointwise in func.tags and written[:1] == [True] and sum(written) == 1


def chosen_by_true(func: Any, args: tuple, kwargs: Mapping) -> Tensor:
    """The result of an operator that chooses by masks, or finds their true elements, if all of these are true.

    Raises:
        DynamicOutputShapeException: it is another operator whose shape depends on values.
    """
    aten = torch.ops.aten

    def places(mask: Tensor) -> Tensor:
        return torch.empty(mask.numel(), mask.dim(), dtype=torch.long)

    if func is aten.nonzero.default:
        return places(args[0])
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
        raise DynamicOutputShapeException(func)
    indices = []
    for index in args[1]:
        is_mask = index is not None and index.dtype is torch.bool
        indices += places(index).unbind(1) if is_mask else [index]
    return func(args[0], indices, *args[2:], **kwargs)


class OnGpu(TorchFunctionMode):
    """Compute on fake CPU tensors as CUDA would, where the memory differs: attention with dropout has a fused kernel
    there, and autocast computes normalizations and losses in float32."""

    IN_FLOAT32 = {
        nn.functional.layer_norm, nn.functional.group_norm, nn.functional.softmax, nn.functional.log_softmax,
        nn.functional.cross_entropy, nn.functional.mse_loss, nn.functional.l1_loss,
    }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            args, kwargs["dropout_p"] = args[:4], 0.0
        elif func in self.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            half = (torch.bfloat16, torch.float16)
            args = tree_map_only(Tensor, lambda value: value.float() if value.dtype in half else value, args)
        return func(*args, **kwargs)


@dataclass
class Steps:
    """What a training step consists of, all made of fake tensors.

    Attributes:
        weights: every tensor of the model: parameters, buffers, constants of quantized layers.
        loss: batch -> loss, a scalar with gradients.
        batches: on the device at once: the micro-batches of a step.
        optimizer: builds the optimizer.
        averages: builds the averaged weights (`update(step)`, `shadow`); None: there are none.
        device: a context that computes as the device of the run does.
    """

    model: nn.Module
    weights: Sequence[Tensor]
    loss: Callable[[Any], Tensor]
    batches: Sequence[Any]
    optimizer: Callable[[], torch.optim.Optimizer]
    averages: Callable[[], Any] | None = None
    device: AbstractContextManager = field(default_factory=nullcontext)


def measure(steps: Steps, ledger: Ledger, without: Collection[str] = ()) -> torch.optim.Optimizer:
    """Carry out a step under the ledger with the optimizer's state of earlier ones; returns the optimizer.

    With several micro-batches it is the last, which has the gradients of the others beside its activations.

    Args:
        without: Parts that are left out: `ACTIVATIONS`, then no forward and backward pass is computed, and `OPTIMIZER`.

    Raises:
        DynamicOutputShapeException: the shape of a result depends on values, which fake tensors do not have.
    """
    model, trained = steps.model, [value for value in steps.model.parameters() if value.requires_grad]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda value: ledger.add([value.grad], GRADIENTS))
    ledger.add(steps.weights, WEIGHTS)
    ledger.add((leaf for leaf in tree_leaves(steps.batches) if isinstance(leaf, Tensor)), BATCH)
    optimizer = steps.optimizer()
    averages = steps.averages() if steps.averages is not None else None
    ledger.add(averages.shadow if averages is not None else (), AVERAGES)

    def make_gradients() -> None:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
            ledger.add([parameter.grad], GRADIENTS)

    def update() -> None:
        if OPTIMIZER in without:
            return
        ledger.phase = "optimizer step"
        optimizer.step()
        ledger.add(optimizer_tensors(optimizer), OPTIMIZER)

    make_gradients()
    update()
    if averages is not None:
        averages.update(1)
    ledger.at_peak = {}
    if ACTIVATIONS not in without:
        if len(steps.batches) == 1:
            optimizer.zero_grad()
        model.train()
        with steps.device:
            ledger.phase = "forward pass"
            loss = steps.loss(steps.batches[-1])
            ledger.phase = "backward pass"
            loss.backward()
            del loss
    update()
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor in an optimizer's state."""
    return [leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor)]


def exchange(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Replace parameters and buffers by what `change` returns for them; tied ones stay tied."""
    changed: dict[int, tuple[Tensor, Tensor]] = {}  # id -> the tensor, which keeps the id its own, and the new one
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in changed:
                    new = change(value)
                    if new is not value and isinstance(value, nn.Parameter) and not isinstance(new, nn.Parameter):
                        new = nn.Parameter(new.detach(), value.requires_grad)
                    changed[id(value)] = value, new
                table[name] = changed[id(value)][1]
    return model


def from_meta(model: nn.Module) -> None:
    """Move tensors from the meta device to the CPU, where they have no values either."""
    exchange(model, lambda value: torch.empty_like(value, device="cpu") if value.is_meta else value)


def nbytes(values: Any) -> int:
    """Bytes of all tensors in a nesting of dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def fake_copy(mode: FakeTensorMode, values: Any) -> Any:
    """The same nesting of dicts and lists with fake tensors of equal shapes and types, each of its own storage."""
    with mode:
        return tree_map_only(Tensor, lambda value: torch.empty_like(value, device="cpu"), values)


def largest_shard(tensor: Tensor, processes: int) -> int:
    """Bytes of the largest shard of a tensor: FSDP2 divides its rows as `torch.chunk` does."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return -(-rows // processes) * (tensor.nbytes // max(1, rows))


def sharded(
    ledger: Ledger, steps: Steps, optimizer: torch.optim.Optimizer, processes: int, half: torch.dtype | None
) -> tuple[dict[str, int], dict[str, int]]:
    """(largest, at the peak) of the parts when FSDP2 divides weights, gradients and optimizer state.

    The peak is an upper bound: all shards, the largest activations, and what is gathered: two layers, of which one is
    fetched ahead, with the gradients of one, and everything outside of the layers.

    Args:
        half: the type that weights are gathered in; None: their own.
    """
    own = {id(parameter) for parameter in steps.model.parameters()}
    trained = [parameter for parameter in steps.model.parameters() if parameter.requires_grad]
    by_shape = lambda tensor, like: largest_shard(tensor, processes) if tensor.shape == like.shape else tensor.nbytes  # noqa
    parts = dict(ledger.largest)
    parts[WEIGHTS] = sum(
        largest_shard(value, processes) if id(value) in own else value.nbytes for value in steps.weights
    )
    parts[GRADIENTS] = sum(largest_shard(parameter, processes) for parameter in trained)
    parts[OPTIMIZER] = sum(
        by_shape(leaf, parameter)
        for parameter, state in optimizer.state.items()
        for leaf in tree_leaves(state)
        if isinstance(leaf, Tensor)
    )
    names = set(getattr(steps.model, "_no_split_modules", None) or ())
    layers = [module for module in steps.model.modules() if type(module).__name__ in names]
    width = {id(value): value.numel() * (half or value.dtype).itemsize for value in steps.model.parameters()}
    sizes = [sum(width[id(value)] for value in layer.parameters()) for layer in layers]
    inside = {id(value) for layer in layers for value in layer.parameters()}
    outside = sum(size for key, size in width.items() if key not in inside)
    parts[GATHERED] = outside + 2 * max(sizes, default=0) + max([outside, *sizes])
    return parts, parts
