"""The two bimanual ALOHA tasks of ACT (Zhao et al. 2023, arXiv:2304.13705) in gym-aloha's MuJoCo scenes.

Importing this file needs neither MuJoCo nor OpenGL; `make` loads the simulator. An observation is a flat
dict keyed by the HDF5 path under which a recording stores it:

    observations/qpos             (14,) float64   joint angles in rad; 6, 13 gripper openings, 0 shut .. 1 open
    observations/qvel             (14,) float64   rad/s; grippers in openings/s
    observations/env_state        (O,) float64    free bodies' positions in metres, quaternions w, x, y, z:
                                                  O = 7 cube | 14 peg, then socket
    observations/images/<camera>  (height, width, 3) uint8

An action is (14,) float64 joint targets in the order of qpos, one every 0.02 s. Targets beyond ±1 are
normal: never clip them to the range that gym-aloha declares.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import ModuleType

    from sim.environment import Environment

CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar")
CONTROL_HZ = 50
MAX_REWARD = 4
PROCESS_KEYS: frozenset[str] = frozenset()


@dataclass
class Config:
    """Keys of an `env` section."""

    task: Literal["transfer_cube", "insertion"] = field(
        metadata={
            "help": "transfer_cube: the right arm lifts a cube and hands it to the left arm; "
            "insertion: each arm lifts a part, then they push the peg into the socket"
        }
    )
    cameras: list[str] = field(
        default_factory=list,
        metadata={"help": f"cameras in every observation, of {', '.join(CAMERAS)}; [] needs no OpenGL"},
    )
    episode_steps: int = field(default=400, metadata={"help": "control steps of an episode, 0.02 s each", "ge": 1})
    image_height: int = field(default=480, metadata={"help": "rendered pixels", "ge": 16, "le": 2160})
    image_width: int = field(default=640, metadata={"help": "rendered pixels", "ge": 16, "le": 3840})
    shadows: bool = field(
        default=False,
        metadata={"help": "cast shadows: three times slower on a CPU; record and score with the same value"},
    )

    def __post_init__(self) -> None:
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise ValueError(f"env.cameras: no camera {camera!r}; this scene has {', '.join(CAMERAS)}")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"env.cameras: {self.cameras} names a camera twice")


def make(config: Config) -> Environment:
    """The simulated task under joint control, ready for `reset(seed)`.

    Raises:
        ValueError: the simulator is not installed, or cameras are asked for and nothing can render.
    """
    return simulator().Environment(config)


def simulator() -> ModuleType:
    """The module `sim.environment`, imported without touching OpenGL.

    dm_control and mujoco load the library that MUJOCO_GL names as soon as they are imported, although
    stepping needs none, so they are imported with rendering off. `sim.renderer` reads MUJOCO_GL again when
    frames are asked for.
    """
    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "off"
    try:
        import sim.environment
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "sim":
            raise
        raise ValueError(
            f"the ALOHA simulator needs the package {error.name!r}, not installed: pip install -e .[sim]"
        ) from error
    finally:
        if chosen is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = chosen
    return sim.environment
