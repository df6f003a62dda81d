"""Patches of functions and objects of transformers and accelerate; each docstring says what would go wrong without it.

Methods of transformers' Trainer that Keel overrides are in `hf_overrides.py`. `tests/trainer/test_hf_contract.py`
compares every name and signature in both modules with the installed versions. Importing this module imports neither
torch nor transformers, because `defer_peft` must run before they are imported.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Functions of torch.nn.init that fill a tensor: those of the other names call one of them.
FIRST_VALUES = (
    "_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_",
    "kaiming_uniform_", "kaiming_normal_",
)  # fmt: skip
PEFT_USERS = ("transformers.trainer_utils", "transformers.trainer")  # modules that import peft when they are imported


def defer_peft() -> None:
    """Let transformers import without peft until the run itself imports it.

    Without it: every run imports peft, and with it bitsandbytes: a second, and a warning about missing CPU kernels.
    Call before anything imports `transformers.trainer_utils`.
    """
    if "peft" in sys.modules or any(name in sys.modules for name in PEFT_USERS):
        return
    import transformers.utils as utils
    from transformers.utils import import_utils

    available = import_utils.is_peft_available

    def hidden() -> bool:
        return False

    utils.is_peft_available = import_utils.is_peft_available = hidden
    try:
        import transformers.trainer  # noqa: F401
    finally:
        utils.is_peft_available = import_utils.is_peft_available = available
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and vars(module).get("is_peft_available") is hidden:
            module.is_peft_available = _peft_is_imported if name in PEFT_USERS else available


def _peft_is_imported() -> bool:
    return "peft" in sys.modules


def connect_peft() -> None:
    """Give transformers the classes of peft that `defer_peft` kept from it, once the run has imported peft.

    Without it: transformers' Trainer fails with a NameError when it checks for a PEFT model.
    """
    peft = sys.modules.get("peft")
    if peft is not None:
        sys.modules["transformers.trainer_utils"].PeftModel = peft.PeftModel
        sys.modules["transformers.trainer_utils"].PeftMixedModel = peft.PeftMixedModel
        sys.modules["transformers.trainer"].PeftModel = peft.PeftModel


def cache_package_lookups() -> None:
    """Remember accelerate's answers about which packages are installed.

    Without it: accelerate searches the import path at every backward pass and every optimizer step.
    """
    from accelerate.utils import imports

    if not hasattr(imports._is_package_available, "cache_info"):
        imports._is_package_available = functools.cache(imports._is_package_available)


@contextlib.contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[Any]:
    """Replace an attribute of a module inside the context; yields the original."""
    original = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield original
    finally:
        setattr(holder, name, original)


@contextlib.contextmanager
def without_first_values(finish: Callable[[Any], None], apply: Callable[..., Any]) -> Iterator[None]:
    """Inside, `from_pretrained` reads only names and shapes of weights (of a .gguf file only the configuration), leaves
    them on the meta device and calls `finish(model)`; first weights are not drawn; and modules convert their tensors by
    `apply(module, conversion)`.

    Without it: estimating the memory of a run would read all of its pretrained weights, and would not end, because a
    truncated normal distribution is drawn until each of the values, which fake tensors lack, is within its bounds; and
    torch cannot convert the fake parameters of a module, as PEFT asks it to.
    """
    import torch
    from torch.nn import Module, init
    from transformers import PreTrainedModel

    load = vars(PreTrainedModel)["from_pretrained"]

    def empty(cls: type, *arguments: Any, **options: Any) -> Any:
        if "gguf_file" in options:  # its blocks would be dequantized, which fake tensors do not allow
            with torch.device("meta"):
                loaded = cls(options["config"]), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}
        else:
            loaded = load.__func__(cls, *arguments, **{**options, "device_map": "meta"})
        finish(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    PreTrainedModel.from_pretrained = classmethod(empty)
    with (
        contextlib.ExitStack() as end,
        replaced(Module, "_apply", lambda module, conversion, recurse=True: apply(module, conversion)),
    ):
        for name in FIRST_VALUES:
            end.enter_context(replaced(init, name, lambda tensor, *arguments, **options: tensor))
        end.callback(setattr, PreTrainedModel, "from_pretrained", load)  # the class method itself, which is not bound
        yield


@contextlib.contextmanager
def start_by_position(start: Callable[[Any, int, Callable[[Any, int], Any]], Any]) -> Iterator[None]:
    """Replace transformers' `skip_first_batches` by `start(loader, batches, skip_first_batches)`.

    Without it: a resumed run draws every batch of the epoch that was already trained on, and throws it away.
    """
    import transformers.trainer as module

    skip = module.skip_first_batches
    with replaced(module, "skip_first_batches", lambda dataloader, num_batches=0: start(dataloader, num_batches, skip)):
        yield


@contextlib.contextmanager
def no_argument_comparison() -> Iterator[None]:
    """Silence transformers' comparison of arguments with those in a checkpoint.

    Without it: transformers warns about changes that Keel has already checked, and reported with their origins.
    """
    import transformers.trainer as module

    with replaced(module, "compare_trainer_and_checkpoint_args", lambda training_args, trainer_state: None):
        yield


@contextlib.contextmanager
def deferred_on_save(handler: Any) -> Iterator[None]:
    """Keep a callback handler from firing `on_save` when a save begins; the checkpoint manager fires it when it ends.

    Without it: callbacks would upload or link a checkpoint that a background thread is still writing.
    """

    def on_save(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = False
        return control

    handler.on_save = on_save
    try:
        yield
    finally:
        del handler.on_save


@contextlib.contextmanager
def on_evaluate_goes_to(handler: Any, is_included: Callable[[Any], bool], before: Callable[[], None]) -> Iterator[None]:
    """Let a callback handler fire `on_evaluate` only for some callbacks, after a call of `before()`.

    Without it: early stopping and checkpointing would count each of several evaluation sets as an evaluation.
    """

    def on_evaluate(args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> Any:
        before()
        return fire_on_evaluate(handler, is_included, args, state, control, metrics)

    handler.on_evaluate = on_evaluate
    try:
        yield
    finally:
        del handler.on_evaluate


def fire_on_evaluate(handler: Any, is_included: Callable[[Any], bool], *arguments: Any) -> Any:
    """Fire `on_evaluate` for some callbacks of a handler; they may add and remove callbacks meanwhile."""
    part = copy.copy(handler)
    part.callbacks = [callback for callback in handler.callbacks if is_included(callback)]
    return type(handler).on_evaluate(part, *arguments)


@contextlib.contextmanager
def no_deletion_at_end() -> Iterator[None]:
    """Keep transformers from deleting checkpoints when training ends with `save_total_limit: 1`.

    Without it: the newest checkpoint is deleted, past `ModelCheckpoint`, which has applied the limit already.
    """
    import transformers.trainer as module

    with replaced(module, "sort_checkpoints", lambda *arguments, **options: []):
        yield


def enable_fsdp_on_cpu() -> None:
    """Make accelerate honour FSDP for CPU processes; call before the accelerator is created.

    Without it: accelerate uses FSDP only with GPUs, and silently trains CPU processes with DDP.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def use_one_gpu(arguments: Any) -> int:
    """Train on the first visible GPU only; returns how many are visible.

    Without it: one process with several GPUs becomes `nn.DataParallel`, which multiplies the batch size.
    """
    visible = arguments.n_gpu
    if visible > 1:
        arguments._n_gpu = 1
    return visible


def replace_next_step(optimizer: Any, step: Callable[..., Any]) -> None:
    """Replace the next `optimizer.step()` by `step(original, *arguments, **options)`; later ones are the original.

    Without it: the update of a step that is not finite could not be skipped (some optimizers count steps without
    gradients), and torch's errors about sharded tensors would reach the user unexplained.
    """
    own, original = vars(optimizer).get("step"), optimizer.step

    def next_step(*arguments: Any, **options: Any) -> Any:
        if own is None:
            del optimizer.step
        else:  # a scheduler has patched the instance as well
            optimizer.step = own
        return step(original, *arguments, **options)

    optimizer.step = next_step
