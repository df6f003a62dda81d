"""The phases of Meta-World's scripted experts in words: what a policy with a language model learns to say.

Their borders are those at which the package's experts change their target (metaworld.policies).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HAND, FINGERS, OBJECT, GOAL = slice(0, 3), 3, slice(4, 7), slice(36, 39)  # of a state (39,)


@dataclass(frozen=True)
class Phases:
    """The hand moves over an object, is lowered to it, and then does `last`."""

    object: str
    last: str
    over_m: float  # horizontal distance from which the hand counts as over the object
    level_m: float  # difference in height from which it counts as lowered
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the point that the hand takes, metres


PHASES = {
    "push": Phases("puck", "push the puck to the goal", 0.02, 0.04, (-0.005, 0.0, 0.0)),
    "pick-place": Phases("puck", "carry the puck to the goal", 0.02, 0.05, (-0.005, 0.0, 0.0)),
    "door-open": Phases("handle", "pull the door open", 0.12, 0.04, (-0.05, 0.0, 0.0)),
    "drawer-open": Phases("handle", "pull the drawer open", 0.06, 0.04, (0.0, 0.0, -0.02)),
    "button-press-topdown": Phases("button", "press the button", 0.04, np.inf),
    "peg-insert-side": Phases("peg", "push the peg into the hole", 0.04, 0.025),
    "window-open": Phases("handle", "slide the window open", 0.04, 0.02, (-0.03, -0.03, -0.08)),
    "window-close": Phases("handle", "slide the window shut", 0.04, 0.02, (0.03, -0.03, -0.08)),
}
NAMED = {"reach", "drawer-close", *PHASES}  # tasks whose phases have words


def subtask(task: str, state: np.ndarray) -> str:
    """What the expert of a task of `NAMED` does now, from the state (39,)."""
    if task == "reach":
        return "move the hand to the goal"
    if task == "drawer-close":
        return _drawer_close(state)
    phases, hand = PHASES[task], state[HAND]
    target = state[OBJECT] + phases.offset
    if np.linalg.norm(hand[:2] - target[:2]) > phases.over_m:
        return f"move over the {phases.object}"
    lifted = task == "pick-place" and target[2] >= 0.04
    if abs(hand[2] - target[2]) > phases.level_m and not lifted:
        return f"lower the hand to the {phases.object}"
    if task == "pick-place" and state[FINGERS] > 0.73:
        return "close the gripper"
    hole = np.array([state[GOAL][1], 0.16])
    if task == "peg-insert-side" and np.linalg.norm(target[1:] - hole) > 0.03:
        return "carry the peg to the hole"
    return phases.last


def _drawer_close(state: np.ndarray) -> str:
    hand, drawer = state[HAND], state[OBJECT] + [0.0, 0.0, -0.02]
    if hand[1] > drawer[1]:
        return "move before the drawer"
    if abs(hand[2] - drawer[2]) > 0.04:
        return "lower the hand to the drawer"
    return "push the drawer shut"
