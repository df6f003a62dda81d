"""What a changed setting of the optimizer means for a resumed run; other keys declare it themselves (`on_resume`)."""

from __future__ import annotations

from typing import Any

from storage.config_keys import IMPOSSIBLE, TRAJECTORY

# Constructor arguments of optimizers that decide the shape of their state.
STATE_SHAPE = ("rank", "proj_type", "optim_bits", "block_size", "merge_dims", "max_preconditioner_dim")
# Constructor switches that keep no state.
STATELESS = ("nesterov", "maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
# Different names of one algorithm, with the same state.
SAME_OPTIMIZER = ({"adamw_torch", "adamw_torch_fused", "AdamW"},)


def class_of_option(before: Any, after: Any, option: str) -> str:
    """Classify a changed constructor argument of the optimizer.

    A number is read at each step, so that another one changes the trajectory only. An argument that was null, or a
    momentum that was 0, has no state yet; an argument that is not a number decides what the state contains.
    """
    if option in STATELESS:
        return TRAJECTORY
    numbers = _is_numeric(before) and _is_numeric(after)
    appears = "momentum" in option and bool(before) != bool(after)
    return IMPOSSIBLE if option in STATE_SHAPE or not numbers or appears else TRAJECTORY


def class_of_optimizer(before: str, after: str) -> str:
    """Classify a change of the optimizer itself."""
    return TRAJECTORY if any({before, after} <= names for names in SAME_OPTIMIZER) else IMPOSSIBLE


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_numeric, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
