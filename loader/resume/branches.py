"""Checkpoints of the branch that a resume abandons, and those of another run that began meanwhile."""

from __future__ import annotations

from pathlib import Path

from loader.resolve.run_config import RunConfig
from loader.resume.find_checkpoint import MODEL_ALONE, ResumePoint, superseded
from storage.checkpoints import checkpoints, set_aside


def check_no_new_checkpoints(run: RunConfig, folder: Path) -> None:
    """Check that a folder which did not exist when checkpoints were searched has none now that it is locked."""
    if run.wants_resume and checkpoints(folder):
        raise ValueError(
            f"another run has saved in {folder} while this one was set up; start it again to resume from there"
        )


def set_aside_abandoned(run: RunConfig, point: ResumePoint | None, skipped: dict[Path, str]) -> list[str]:
    """Rename checkpoints of the abandoned branch, so that a later `auto` ignores them; returns lines to print."""
    lines = []
    for path, reason in skipped.items():
        name = set_aside(path, "superseded" if reason == MODEL_ALONE else "damaged")
        lines.append(f"skipping {path.name}: it {reason}; renamed {name}")
    if point is None:
        return lines
    lines.append(f"resuming from {point.folder}")
    for path in superseded(run, point):
        name = set_aside(path, "superseded")
        lines.append(f"{path.name} belongs to the branch that is abandoned here: renamed {name}")
    return lines
