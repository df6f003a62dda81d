"""The error of a folder in which episode files cannot be used: all of them are named, not the first alone."""

from __future__ import annotations

from pathlib import Path

MOST_LINES = 20
FEW = 3  # files that have the same problem and are each named


class BadEpisodes(ValueError):
    """Episode files that cannot be used; `problems` has a line for each, and one with the remedy.

    Args:
        folder: That all files are in.
        problems: File -> what is wrong with it, which names the file.
    """

    def __init__(self, folder: Path, problems: dict[Path, str]):
        self.files = list(problems)
        kinds: dict[str, list[str]] = {}
        for file, line in problems.items():
            kinds.setdefault(line.replace(str(file), "…"), []).append(line)
        lines = []
        for same in kinds.values():
            if len(same) > FEW:
                lines.append(f"{same[0]} (and the same in {len(same) - 1} more files)")
            else:
                lines += same
        self.problems = lines[:MOST_LINES]
        if len(lines) > MOST_LINES:
            self.problems.append(f"{len(lines) - MOST_LINES} more problems in {folder}")
        if len(problems) > 1 and len(kinds) > 1:
            names = ", ".join(str(file.relative_to(folder)) for file in self.files[:MOST_LINES])
            more = ", …" if len(problems) > MOST_LINES else ""
            self.problems.append(
                f"{len(problems)} files cannot be used; dataset.exclude: [{names}{more}] leaves them out"
            )
        super().__init__(self.problems[0] if len(problems) == 1 else " | ".join(self.problems))
