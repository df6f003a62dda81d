"""Configuration keys and constants of the ALOHA scenes; importing this needs neither MuJoCo nor OpenGL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from storage.config_keys import key

CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar")
CONTROL_HZ = 50
MAX_REWARD = 4
SCENES, INSTALL = "sim.aloha.environment", "pip install -e .[sim]"


@dataclass
class Config:
    """Keys of an `env` section."""

    simulator: ClassVar[str] = "sim.aloha"

    task: Literal["transfer_cube", "insertion", "two_cubes"] = field(
        metadata={
            "help": "transfer_cube: the right arm lifts a cube and hands it to the left arm; "
            "insertion: each arm lifts a part, then they push the peg into the socket; "
            "two_cubes: one arm lifts the red or the blue cube, which is said only in the instruction"
        }
    )
    instruction: Literal["right", "wrong", "held_out"] = key(
        "right",
        "right: a phrasing that recordings use; held_out: one that they never use; wrong: another cube or arm, the "
        "control that shows whether a policy reads it",
        needs="task",
        needs_value=("two_cubes",),
    )
    cameras: list[str] = key([], f"cameras in every observation, of {', '.join(CAMERAS)}; [] needs no OpenGL")
    episode_steps: int = key(400, "control steps of an episode, 0.02 s each", ge=1)
    image_height: int = key(480, "rendered pixels", ge=16, le=2160)
    image_width: int = key(640, "rendered pixels", ge=16, le=3840)
    shadows: bool = key(
        False, "shadows and reflections: three times slower on a CPU; record and evaluate with the same value"
    )

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"env.cameras: no camera {camera!r}; this scene has {', '.join(CAMERAS)}")
