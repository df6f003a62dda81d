"""Declare configuration keys: dataclass fields whose metadata is the only place that describes a key.

Every room declares its own keys (flags and process parameters in loader, sections in trainer, components in data,
models and sim) and none of them may import another, so the declaration itself is here, on the ground floor.

Metadata of a key:
    help: One sentence for `--help`, `--print_schema` and error lines.
    ge, gt, le, lt: Bounds of a number.
    on_resume: What a changed value means for a resumed run, one of the classes below; TRAJECTORY if absent.
    needs: The switch (another key) without which this key does nothing.
    needs_value: The values that the switch must have; None: any that is true.
    unless: Paths of keys in the same component (`section.key`), each of which leaves this one without effect.
    is_path: A relative path; where it exists, it is stored as an absolute one, so that run.yaml works in any folder.
    used_by: Who reads a process parameter: TRAINER (if absent), ADAPTATION or COMPONENT (those that list it).
Further metadata of a flag are arguments of argparse's `add_argument`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BOUNDS = ("ge", "gt", "le", "lt")

# Classes of `on_resume`.
HARMLESS = "harmless"  # applied: training takes the same course
EVALUATION = "evaluation"  # harmless unless the learning rate or the end of the run depends on an evaluation
EVALUATION_TIME = "evaluation time"  # the same, for keys that decide when an evaluation happens
LOGGING = "logging"  # harmless unless early stopping monitors a training metric, which it reads from the log
TRAJECTORY = "trajectory"  # refused, unless `resume_changed: allow`; then applied and recorded
IMPOSSIBLE = "impossible"  # refused: the state in the checkpoint would not fit or would mean something else
OWN_RULE = "own rule"  # length, batch and rates: see loader/resume/compatibility.py

# Values of `used_by`.
TRAINER = "trainer"  # the trainer or the loader, for every model and data set
ADAPTATION = "adaptation"  # models.adapt, for every model
COMPONENT = "component"  # only components that list the key in their PROCESS_KEYS


def key(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field with its help text and metadata (see the module's docstring).

    Args:
        default: The default; a list or dict is copied for every instance.
        help: One sentence that says what the key does, with its unit.
    """
    metadata["help"] = help
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
