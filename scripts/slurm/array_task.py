"""The command line of one task of a job array: `array_task.py TASK SWEEP ARGUMENT…`; SWEEP may be empty.

SWEEP is a text file with a line of flags for each task, quoted as for a shell; blank lines and those that begin with #
do not count. The task's line follows the arguments that all tasks have. A task whose line names no --output_dir writes
into a folder of its own below the common one: --output_dir runs/sweep is runs/sweep/3 for task 3. Which words name a
folder, train.py's own parser says.

Prints the arguments, each followed by a NUL. Exit code 2, and a line that says why, where two tasks would share a
folder, where a task has no line, or where a line cannot be read.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent)]

from loader.command_line.parser import parse_flags  # noqa: E402
from loader.errors import Problems  # noqa: E402
from loader.schema.alias_flags import alias_paths  # noqa: E402
from loader.sources.layers import set_layer  # noqa: E402

FOLDER_FLAGS = ("output_dir", *(word for word, path in alias_paths().items() if path == "output_dir"))


def array_task(task: int, sweep: str, common: list[str]) -> list[str]:
    """The arguments of a task; a ValueError where it cannot have any."""
    if not sweep:
        return [*common, *own_folder(common, [], task)]
    lines = sweep_lines(sweep)
    if task not in range(len(lines)):
        last = f"its tasks are 0 to {len(lines) - 1}" if lines else "it has no lines"
        raise ValueError(f"{sweep} has no line for task {task}: {last}; submit with --array=0-{max(len(lines) - 1, 0)}")
    words = [*lines[task], *own_folder(common, lines[task], task)]
    folder = os.path.realpath(os.path.expanduser(output_dir(words)))
    for number, line in enumerate(lines):
        if number != task and other_folder(common, line, number) == folder:
            first, second = sorted((task, number))
            raise ValueError(f"{sweep}: tasks {first} and {second} both write to {folder}; give each its --output_dir")
    return [*common, *words]


def sweep_lines(sweep: str) -> list[list[str]]:
    """The words of each line that counts."""
    try:
        text = Path(sweep).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"KEEL_SWEEP={sweep} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ValueError(f"{sweep}:{number} cannot be read: {str(error).lower()}") from error
        if not words[0].startswith("--"):  # it would be one more value of the last flag before it
            raise ValueError(f"{sweep}:{number} begins with `{words[0]}`; begin it with a flag, --name")
        lines.append(words)
    return lines


def own_folder(common: list[str], line: list[str], task: int) -> list[str]:
    """`--output_dir FOLDER` of a task whose line does not name one."""
    if output_dir(line) is not None:
        return []
    folder = output_dir(common)
    if folder is None:
        raise ValueError(
            f"task {task} has no --output_dir: give one for all (each task gets a folder below it), or one in each "
            "line of KEEL_SWEEP"
        )
    return ["--output_dir", os.path.join(folder, str(task))]


def other_folder(common: list[str], line: list[str], task: int) -> str | None:
    """Where another task writes; None where its line cannot be read: that task says why."""
    try:
        return os.path.realpath(os.path.expanduser(output_dir([*line, *own_folder(common, line, task)])))
    except ValueError:
        return None


def output_dir(words: list[str]) -> str | None:
    """The folder that flags name, or None; `--set output_dir=…`, which would outrank it for all tasks, is refused."""
    given = parse_flags(words)
    if "output_dir" in set_layer(given.command.set, Problems()).value:
        raise ValueError(f"`--set {' '.join(given.command.set)}`: in an array, name the folder by --output_dir")
    flags = {name: getattr(given.hyper, name) for name in given.hyper.given} | given.aliases
    return next((flags[name] for name in FOLDER_FLAGS if name in flags), None)


def main() -> int:
    task, sweep, *common = sys.argv[1:]
    try:
        words = array_task(int(task), sweep, common)
    except ValueError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
