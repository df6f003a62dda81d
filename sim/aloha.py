"""The two bimanual ALOHA tasks of ACT (Zhao et al. 2023, arXiv:2304.13705) in gym-aloha's MuJoCo scenes.

Importing this file needs neither MuJoCo nor OpenGL; `make` loads the simulator. An observation is a flat
dict keyed by the HDF5 path under which a recording stores it:

    observations/qpos             (14,) float64   joint angles in rad; 6, 13 gripper openings, 0 closed .. 1 open
    observations/qvel             (14,) float64   rad/s; grippers in openings/s
    observations/env_state        (O,) float64    free bodies' positions in metres, quaternions w, x, y, z:
                                                  O = 7 cube | 14 peg, then socket
    observations/images/<camera>  (height, width, 3) uint8

An action is (14,) float64 joint targets in the order of qpos, one every 0.02 s. Targets beyond ±1 are
normal: never clip them to the range that gym-aloha declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.aloha_config import Config
from storage.worker_pool import environment_variables

if TYPE_CHECKING:
    from types import ModuleType

    from sim.environment import Environment

PROCESS_KEYS: frozenset[str] = frozenset()
CONTROL_RATE_HZ = 50


def make(config: Config) -> Environment:
    """The simulated task under joint control, before its first `reset(seed)`.

    Raises:
        ValueError: The simulator is not installed, or it has cameras and nothing can render.
    """
    return simulator().Environment(config)


def simulator() -> ModuleType:
    """The module `sim.environment`, imported without touching OpenGL.

    On import, dm_control and mujoco load the library that MUJOCO_GL names, although stepping needs none, so they are
    imported with rendering off. `sim.renderer` reads MUJOCO_GL again for the first frame.
    """
    try:
        with environment_variables({"MUJOCO_GL": "off"}):
            import sim.environment
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "sim":
            raise
        raise ValueError(
            f"the ALOHA simulator needs the package {error.name!r}, not installed: pip install -e .[sim]"
        ) from error
    return sim.environment
