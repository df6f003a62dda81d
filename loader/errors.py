"""Errors in the user's input: collected and then shown together, one line each."""

from __future__ import annotations

from collections.abc import Iterable

from storage.safe_read import escaped

MOST_PROBLEMS = 100  # a file of another kind would have one for each of its lines
MOST_SHOWN = 2000  # characters of a problem's line


class ConfigError(ValueError):
    """An invalid configuration. `problems` has one line for each error: value, place, remedy."""

    exit_code = 2  # of the command line
    is_on_every_rank = False  # every process of a launch raises it

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects errors while a configuration is read, so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []  # lines to print once although nothing is wrong
        self.aliases: set[str] = set()  # aliases in any layer that imply a task
        self.translated: list[str] = []  # what each alias of another name became
        self.file_missing = False  # then keys that the file may hold are not reported as missing

    def add(self, line: str) -> None:
        """Add a problem; after MOST_PROBLEMS, give up."""
        if len(self.lines) >= MOST_PROBLEMS:
            raise ConfigError([*self.lines, f"these are the first {MOST_PROBLEMS} problems; correct them first"])
        self.lines.append(one_line(line))

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def all_notes(self) -> list[str]:
        """The notes, after one block with all aliases."""
        translated = [f"  {line}" for line in dict.fromkeys(self.translated)]
        return [*(["\n".join(["read as:", *translated])] if translated else []), *self.notes]

    def raise_if_any(self) -> None:
        if self.lines:
            raise ConfigError(self.lines)


def one_line(text: str) -> str:
    """Format a problem as one printable line: escape control characters, and cut the middle of a long text."""
    line = escaped(" ".join(text.split()))
    half = MOST_SHOWN // 2
    return line if len(line) <= MOST_SHOWN else f"{line[:half]} … {line[-half:]}"


def quoted(names: Iterable[str]) -> str:
    """Format names as a list: `a`, `b`, `c`."""
    return ", ".join(f"`{name}`" for name in names)


def shown(value: object) -> str:
    """Format a value as YAML does: null, true, false."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
