"""Process keys that something in the run honours: a key that nothing can use must be at its default."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from loader.errors import Problems, quoted, shown
from loader.resolve.run_config import RunConfig
from loader.schema.components import component_module, shipped
from loader.schema.keys import keys_of
from loader.schema.process_arguments import ProcessArguments
from loader.schema.sections import COMPONENTS
from storage.config_keys import ADAPTATION, TRAINER


def adaptation() -> ModuleType:
    """What adapts any model (LoRA, quantization, freezing …); found by name, as components are."""
    return importlib.import_module("models.adapt")


def check_process_keys(run: RunConfig, problems: Problems) -> None:
    """A process key that nothing in this run can use must be at its default: no setting is silently dead."""
    chosen = [part for part in (run.dataset, run.model, run.env, run.loss) if part is not None]
    keys = keys_of(ProcessArguments)
    always = (TRAINER, ADAPTATION) if run.model is not None else (TRAINER,)
    live = {name for name, key in keys.items() if key.used_by in always}
    live = live.union(*(getattr(part.module, "PROCESS_KEYS", ()) for part in chosen))
    if run.model is not None:
        adapt = adaptation()
        module = run.model.module
        parts, own = getattr(module, "PARTS", None), getattr(module, "PROCESS_KEYS", ())
        for line in adapt.check(parts, run.process, own):
            problems.add(_placed(line, run))
    for name in ("quant_type", "double_quant"):
        if run.process.use_quantization and run.process.bits == 8 and run.was_set(name):
            problems.add(f"`{name}`{run.place(name)} has no effect with `bits: 8`{run.place('bits')}; it is of 4 bits")
    for name, key in keys.items():
        value = getattr(run.process, name)
        if value == key.default:
            continue
        if name not in live:
            users = _users(name)
            able = f"; used by {users}" if users else " yet"
            problems.add(
                f"`{name}: {shown(value)}`{run.place(name)} has no effect: no model or data here uses `{name}`"
                f"{able}; set it to {shown(key.default)}"
            )
            continue
        if key.needs is not None and not getattr(run.process, key.needs):
            off = shown(getattr(run.process, key.needs))
            problems.add(f"`{name}: {shown(value)}`{run.place(name)} has no effect while `{key.needs}` is {off}")


def _placed(line: str, run: RunConfig) -> str:
    """A line that begins with a key, with the place that set the key."""
    found = re.match(r"`(\w+)[^`]*`", line)
    return line if found is None else f"{found[0]}{run.place(found[1])}{line[found.end() :]}"


def _users(name: str) -> str:
    """Shipped components that use a process key, for the error that says who could."""
    found = []
    for section in COMPONENTS:
        for component in shipped(section):
            if name in getattr(component_module(section, component), "PROCESS_KEYS", ()):
                found.append(f"{section} {component}")
    return quoted(found)
