"""Names and options read from source equal those that the imported packages have."""

import inspect
import subprocess
import sys
import time

import pytest

from loader.schema.installed import (
    _source,
    constructor_options,
    pytorch_optimizers,
    torch_optimizers,
    torch_schedulers,
)


def parameters(called, *given):
    return [
        name
        for name, each in inspect.signature(called).parameters.items()
        if name not in given and each.kind != each.VAR_KEYWORD
    ]


def test_names_are_those_of_the_imported_packages():
    import torch
    from torch.optim import lr_scheduler

    base = torch.optim.Optimizer
    truth = {n for n, k in vars(torch.optim).items() if isinstance(k, type) and issubclass(k, base) and k is not base}
    assert set(torch_optimizers()) == truth
    known = {
        n for n, k in vars(lr_scheduler).items() if isinstance(k, type) and issubclass(k, lr_scheduler.LRScheduler)
    }
    assert set(torch_schedulers()) == known - {"LRScheduler", "_LRScheduler", "LambdaLR", "MultiplicativeLR"}


def test_the_packages_classes_are_all_known():
    package = pytest.importorskip("pytorch_optimizer.optimizer")
    truth = {name for name in package.__all__ if isinstance(getattr(package, name), type)}
    truth |= {kind.__name__ for kind in package.OPTIMIZERS.values()}
    assert set(pytorch_optimizers()) == truth and len(truth) > 120


@pytest.mark.slow
def test_options_are_the_constructors():
    import torch
    from torch.optim import lr_scheduler

    def options_of(kind):
        names = parameters(kind, next(iter(inspect.signature(kind).parameters)))
        adamw = parameters(torch.optim.AdamW, "params") if kind is torch.optim.Muon else []
        return list(dict.fromkeys([*names, *adamw]))

    for name in torch_schedulers():
        kind = getattr(lr_scheduler, name)
        assert list(constructor_options(name)) == parameters(kind, "optimizer", "last_epoch"), name
    for name in torch_optimizers():
        assert list(constructor_options(name)) == options_of(getattr(torch.optim, name)), name
    for name in ("adamw_torch", "cosine", "Lion", "NoSuchThing"):
        assert constructor_options(name) is None


def test_a_package_that_is_not_installed_has_no_names(monkeypatch):
    monkeypatch.setattr("loader.schema.installed._folder", lambda package: None)
    for each in (_source, pytorch_optimizers, torch_optimizers):
        each.cache_clear()
    try:
        assert pytorch_optimizers() == () and torch_optimizers() == ()
        assert constructor_options.__wrapped__("SGD") is None
    finally:
        for each in (_source, pytorch_optimizers, torch_optimizers):
            each.cache_clear()


@pytest.mark.slow
def test_reading_imports_nothing_and_is_quick():
    program = """
import sys, time
from loader.schema import installed
began = time.perf_counter()
installed.constructor_options("SGD"), installed.constructor_options("OneCycleLR"), installed.pytorch_optimizers()
print(time.perf_counter() - began, *sorted({"torch", "transformers", "pytorch_optimizer"} & set(sys.modules)))
"""
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == []
    assert float(out[0]) < 0.5, f"{out[0]} s to read, {time.perf_counter() - began:.2f} s in all"
