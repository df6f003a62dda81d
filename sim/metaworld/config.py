"""Configuration keys of Meta-World; importing this needs neither MuJoCo nor OpenGL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sim.metaworld.instructions import SETS, TASKS
from storage.config_keys import key
from storage.suggestions import did_you_mean

CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")


@dataclass
class Config:
    """Keys of an `env` section with `name: metaworld`."""

    simulator: ClassVar[str] = "sim.metaworld"

    task: str | list[str] = key(
        "mt3",
        f"a task such as door-open, a list of tasks, or one of the sets {', '.join(SETS)}; seeds take them in turn",
    )
    cameras: list[str] = key([], f"cameras in every observation, of {', '.join(CAMERAS)}; [] needs no OpenGL")
    episode_steps: int = key(300, "control steps of an episode, 0.0125 s each", ge=1, le=500)
    show_goal: bool = key(True, "the goal's position is in the state; false: zeros, as in Meta-World's ML benchmarks")
    instruction: Literal["right", "wrong", "held_out"] = key(
        "right",
        "right: a phrasing that recordings use; held_out: one that they never use; wrong: the instruction of another "
        "task of the set, where tasks share a scene the one that least fulfils the goal of the first: the control that "
        "shows whether a policy reads it; the expert follows it too, and its rate is what an obeying policy gets",
    )
    image_height: int = key(96, "rendered pixels", ge=16, le=2160)
    image_width: int = key(96, "rendered pixels", ge=16, le=3840)
    shadows: bool = key(False, "shadows and reflections: slower on a CPU; record and evaluate with the same value")
    antialias: bool = key(True, "smooth edges; false: twice as fast on a CPU; record and evaluate with the same value")

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"env.cameras: no camera {camera!r}; Meta-World has {', '.join(CAMERAS)}")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"env.cameras: {self.cameras} names a camera twice")
        for task in self.tasks:
            if task not in TASKS:
                remedy = did_you_mean(task, [*TASKS, *SETS], f"; there are {', '.join([*SETS, *TASKS])}")
                raise ValueError(f"env.task: no Meta-World task {task!r}{remedy}")
        if self.instruction == "wrong" and len(self.tasks) < 2:
            raise ValueError("env.instruction: wrong takes that of another task, but env.task names only one")

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which seeds take them."""
        names = [self.task] if isinstance(self.task, str) else self.task
        names = [name.removesuffix("-v3").removesuffix("-v2") for name in names]
        return list(dict.fromkeys(task for name in names for task in SETS.get(name, [name])))
