"""Which bodies of an ALOHA scene touch. Imported by `sim.aloha.environment`."""

from __future__ import annotations

from dm_control.mujoco import Physics

FINGERS = {
    arm: (f"vx300s_{arm}/10_left_gripper_finger", f"vx300s_{arm}/10_right_gripper_finger") for arm in ("left", "right")
}


def contacts(physics: Physics) -> set[tuple[str, str]]:
    """Pairs of geom names that touch now, the one with the lower geom number first."""
    touching = physics.data.contact
    pairs = zip(touching.geom1.tolist(), touching.geom2.tolist(), strict=True)
    return {
        (physics.model.id2name(first, "geom"), physics.model.id2name(second, "geom")) for first, second in set(pairs)
    }
