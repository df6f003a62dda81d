"""Scripted experts: each hand follows time-stamped waypoints that depend on the positions of the parts.

The expert plans in a scene whose hands follow poses, and what it plans is the sequence of joint targets that
reproduces the motion under joint control. The phases follow the scripted policies published with ACT
(arXiv:2304.13705, appendix); waypoints and timings are tuned for MuJoCo 3.

Shapes: T control steps, O length of the free bodies' poses (7 cube, 14 peg then socket or red then blue cube).
A hand command is (8,): position in metres (3), quaternion w, x, y, z (4), gripper opening 0 .. 1 (1).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from sim.aloha.config import INSTALL, SCENES, Config
from sim.aloha.instructions import ARMS, COLOURS
from sim.contract import import_without_opengl

OPEN, CLOSED = 1.0, 0.0


@dataclass(frozen=True)
class Waypoint:
    """Pose of a hand at a control step; between two waypoints it moves in a straight line."""

    step: float
    position: np.ndarray  # (3,) metres
    rotation: np.ndarray  # (4,) quaternion
    gripper: float
    subtask: str = ""  # what is done on the way here; only the waypoints of one hand have it


def rotation(axis: str, degrees: float) -> np.ndarray:
    """The quaternion (4,) of a turn about x, y or z."""
    half = np.radians(degrees) / 2
    return np.array([np.cos(half), *np.sin(half) * np.eye(3)["xyz".index(axis)]])


Track = tuple[list[Waypoint], list[Waypoint]]  # of the left hand, of the right hand


@dataclass
class Jitter:
    """Random differences between demonstrations, so that a policy learns from more than one motion."""

    random: np.random.Generator
    scale: float

    def metres(self, x: float, y: float, z: float) -> np.ndarray:
        """An offset (3,) drawn uniformly within ± the given metres."""
        return self.scale * self.random.uniform(-1, 1, 3) * (x, y, z)

    def steps(self, most: float) -> float:
        return self.scale * self.random.uniform(-most, most)


def transfer_cube(poses: np.ndarray, start: np.ndarray, jitter: Jitter) -> Track:
    """The right hand lifts the cube to the middle, and hands it over to the left hand."""
    cube = poses[:3]
    pick, roll = rotation("y", -60), rotation("x", 90)
    meet = np.array([0, 0.5, 0.25]) + jitter.metres(0.01, 0.01, 0.01)
    lift = jitter.steps(8)  # both hands reach the meeting point together, sooner or later
    above = cube + [0, 0, 0.08] + jitter.metres(0.01, 0.01, 0.01)
    grasp = cube + [0, 0, -0.015] + jitter.metres(0.003, 0.003, 0.002)
    right = [
        Waypoint(0, start[1, :3], start[1, 3:7], CLOSED),
        Waypoint(90 + jitter.steps(6), above, pick, OPEN, "move the right hand over the cube"),
        Waypoint(130 + jitter.steps(4), grasp, pick, OPEN, "lower the right hand to the cube"),
        Waypoint(170, grasp, pick, CLOSED, "close the right gripper"),
        Waypoint(200 + lift, meet + [0.05, 0, 0], pick, CLOSED, "lift the cube"),
        Waypoint(220 + lift, meet, pick, CLOSED, "lift the cube"),
        Waypoint(
            315 + lift, meet, pick, CLOSED, "hand the cube over"
        ),  # opens only after the left hand has closed at 310
        Waypoint(345 + lift, meet, pick, OPEN, "open the right gripper"),
        Waypoint(380 + lift, meet + [0.1, 0, 0], pick, OPEN, "withdraw the right hand"),
    ]
    wait = meet + [-0.1, 0, -0.02] + jitter.metres(0.01, 0.01, 0.01)
    # 2 cm higher than the right hand: any lower, and a finger knocks the cube out of the right hand's grip.
    take = meet + [0.02, 0, 0.02]
    left = [
        Waypoint(0, start[0, :3], start[0, 3:7], CLOSED),
        Waypoint(100 + jitter.steps(8), wait, roll, OPEN),
        Waypoint(260 + lift, take, roll, OPEN),
        Waypoint(310 + lift, take, roll, CLOSED),
        Waypoint(345 + lift, take, roll, CLOSED),
        Waypoint(380 + lift, meet + [-0.1, 0, 0], roll, CLOSED),
    ]
    return left, right


def insertion(poses: np.ndarray, start: np.ndarray, jitter: Jitter) -> Track:
    """Each hand lifts its part by the middle, left the socket and right the peg; then they push together."""
    peg, socket = poses[:3], poses[7:10]
    meet = np.array([0, 0.5, 0.15]) + jitter.metres(0.01, 0.01, 0.01)
    together = jitter.steps(6)

    def hand(side: int, part: np.ndarray, pick: np.ndarray, raised: float) -> list[Waypoint]:
        """`side` -1 left, +1 right: the direction in x from the meeting point to this arm."""
        first = start[(side + 1) // 2]
        above = part + [0, 0, 0.08] + jitter.metres(0.01, 0.01, 0.01)
        grasp = part + [0, 0, -0.03] + jitter.metres(0.002, 0.002, 0.001)
        apart = meet + [side * 0.1, 0, raised]
        joined = meet + [side * 0.05, 0, raised]
        return [
            Waypoint(0, first[:3], first[3:7], CLOSED),
            Waypoint(120 + jitter.steps(6), above, pick, OPEN, "move both hands over the parts"),
            Waypoint(170 + jitter.steps(4), grasp, pick, OPEN, "lower both hands to the parts"),
            Waypoint(220, grasp, pick, CLOSED, "close both grippers"),
            Waypoint(285 + together, apart, pick, CLOSED, "lift the parts"),
            Waypoint(340 + together, joined, pick, CLOSED, "push the peg into the socket"),
        ]

    left = hand(-1, socket, rotation("y", 60), 0.0)
    right = hand(1, peg, rotation("y", -60), 0.00715)
    return left, right


def two_cubes(poses: np.ndarray, start: np.ndarray, jitter: Jitter, colour: str, arm: str) -> Track:
    """One arm lifts the cube of a colour; the other stays."""
    cube, side = poses[7 * COLOURS.index(colour) :][:3], ARMS.index(arm)
    pick = rotation("y", -60 if arm == "right" else 60)
    above = cube + [0, 0, 0.08] + jitter.metres(0.01, 0.01, 0.01)
    grasp = cube + [0, 0, -0.015] + jitter.metres(0.003, 0.003, 0.002)
    lifted = cube + [0, 0, 0.18] + jitter.metres(0.01, 0.01, 0.01)
    moving = [
        Waypoint(0, start[side, :3], start[side, 3:7], CLOSED),
        Waypoint(90 + jitter.steps(6), above, pick, OPEN, f"move the {arm} hand over the {colour} cube"),
        Waypoint(130 + jitter.steps(4), grasp, pick, OPEN, f"lower the {arm} hand to the {colour} cube"),
        Waypoint(165, grasp, pick, CLOSED, f"close the {arm} gripper"),
        Waypoint(215 + jitter.steps(6), lifted, pick, CLOSED, f"lift the {colour} cube"),
    ]
    resting = [Waypoint(0, start[1 - side, :3], start[1 - side, 3:7], CLOSED)]
    return (moving, resting) if arm == "left" else (resting, moving)


PLANS = {"transfer_cube": transfer_cube, "insertion": insertion, "two_cubes": two_cubes}


def subtasks(waypoints: list[Waypoint], steps: int) -> list[str]:
    """What a hand does at each step: on the way to the next waypoint, or at last to the last one."""
    times = [waypoint.step for waypoint in waypoints]
    ahead = np.searchsorted(times, np.arange(1, steps + 1)).clip(max=len(times) - 1)
    return [waypoints[number].subtask for number in ahead]


def commands(waypoints: list[Waypoint], steps: int) -> np.ndarray:
    """Hand commands (T, 8) along the waypoints; the hand stays at the last one."""
    times = [waypoint.step for waypoint in waypoints]
    assert times == sorted(times), f"waypoints out of order: {times}"
    corners = np.array([[*w.position, *w.rotation, w.gripper] for w in waypoints])  # (waypoints, 8)
    moments = np.arange(1, steps + 1)  # command t is the pose at the end of step t
    track = np.stack([np.interp(moments, times, column) for column in corners.T], axis=1)
    track[:, 3:7] /= np.linalg.norm(track[:, 3:7], axis=1, keepdims=True)
    return track


@functools.cache
def _hands(task: str):
    """The end-effector scene of this process: the expert resets it for every plan."""
    return import_without_opengl(SCENES, INSTALL).EndEffectorEnvironment(task)


def plan(
    config: Config,
    poses: np.ndarray,
    random: np.random.Generator,
    jitter: float,
    instructed: tuple[str, str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Joint targets (T, 14) that do the task from `poses` (O,), and in words what is done at each step.

    `jitter` scales the waypoints' random offsets: 0 is always the same motion, 1 the default of recordings.
    `instructed` is the colour and the arm of two_cubes.
    """
    hands = _hands(config.task)
    start, steps = hands.reset(poses), config.episode_steps
    tracks = PLANS[config.task](poses, start, Jitter(random, jitter), *(instructed or ()))
    both = np.stack([commands(track, steps) for track in tracks], axis=1)
    speaking = max(tracks, key=lambda track: bool(track[-1].subtask))
    return np.stack([hands.step(pair) for pair in both]), subtasks(speaking, steps)  # both: (T, 2, 8)
