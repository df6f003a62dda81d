"""What the installed packages accept by name, read from their source: importing torch to check a word costs seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from .trainer_fields import transformers_folder

# Reporting backends whose package has another name, or that need none.
BACKEND_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": None}
NOT_OPTIMIZERS = {"Optimizer", "lr_scheduler", "swa_utils", "swap_in_optimizer_params_and_state"}


@cache
def torch_optimizers() -> tuple[str, ...]:
    """Names of the optimizer classes in the installed torch.optim; empty where torch is not found."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return ()
    source = (Path(found.submodule_search_locations[0]) / "optim" / "__init__.py").read_text(encoding="utf-8")
    listed = re.search(r"^__all__ = (\[.*?\])", source, re.DOTALL | re.MULTILINE)
    return tuple(name for name in ast.literal_eval(listed[1]) if name not in NOT_OPTIMIZERS) if listed else ()


@cache
def reporting_backends() -> tuple[str, ...]:
    """Names that `report_to` takes in the installed transformers."""
    source = (transformers_folder() / "integrations" / "integration_utils.py").read_text(encoding="utf-8")
    table = re.search(r"^INTEGRATION_TO_CALLBACK = \{(.*?)\}", source, re.DOTALL | re.MULTILINE)
    return tuple(re.findall(r'"(\w+)":', table[1])) if table else ()


def backend_is_installed(name: str) -> bool:
    """Whether the package that a reporting backend needs can be found."""
    package = BACKEND_PACKAGES.get(name, name)
    return package is None or importlib.util.find_spec(package) is not None
