"""A component's `Config` as a transformers configuration: a checkpoint's config.json holds the same keys."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel


def pretrained_config(config: type, model_type: str, name: str, module: str) -> type[PreTrainedConfig]:
    """The `PreTrainedConfig` class with the fields, defaults and `__post_init__` checks of `config`.

    Args:
        config: a component's `Config`.
        model_type: what config.json calls the network.
        name, module: where the result is bound (`name = pretrained_config(…)` in `module`), for pickling.
    """
    own = [item.name for item in fields(config)]

    def __init__(self: PreTrainedConfig, **values: Any) -> None:
        checked = config(**{key: values.pop(key) for key in own if key in values})
        for key, value in asdict(checked).items():
            setattr(self, key, value)
        PreTrainedConfig.__init__(self, **values)

    # transformers makes every configuration a dataclass, but keeps an `__init__` found in the class body.
    body = {"__init__": __init__, "model_type": model_type, "__module__": module, "__doc__": config.__doc__}
    return type(name, (PreTrainedConfig,), body)


def load_checkpoint(model: type[PreTrainedModel], folder: str | Path) -> PreTrainedModel:
    """The network saved in `folder`, in evaluation mode; never looks at a hub.

    Raises:
        ValueError: no checkpoint there, one of another network, or one whose weights do not fit its config.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json; give a run's output folder or a checkpoint in it")
    wanted = model.config_class.model_type
    found = model.config_class.get_config_dict(folder)[0].get("model_type")
    if found != wanted:
        raise ValueError(
            f"{folder}: holds a {found!r} model, not {wanted!r}; --set model.name={_component(found)} takes it"
        )
    loaded, report = model.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_unfilled(report, str(folder))
    return loaded


def _component(model_type: Any) -> str:
    """The component whose networks config.json calls so: ours go by one name, all others are transformers'."""
    is_ours = str(model_type).isidentifier() and importlib.util.find_spec(f"models.{model_type}") is not None
    return str(model_type) if is_ours else "auto"


def refuse_unfilled(report: dict, place: str) -> None:
    """Raise ValueError if `from_pretrained` reports weights left at random; it only warns of them."""
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    unfilled = sorted([*report["missing_keys"], *mismatched])
    if unfilled:
        raise ValueError(
            f"{place}: {len(unfilled)} weights missing or of another shape, first {unfilled[0]}; "
            "choose the architecture that these weights were saved from"
        )
