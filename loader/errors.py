"""Problems in what the user wrote: collected, then shown together, one line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_PROBLEMS = 100  # a file of another kind would have one for each of its lines
MOST_SHOWN = 2000  # characters of a problem's line
MOST_COMPARED = 100  # characters of a word that is compared with known ones


class ConfigError(ValueError):
    """What the user wrote cannot be run. `problems` holds one line per fault: value, place, remedy."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects faults while a configuration is read, so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []  # what is worth saying once although nothing is wrong
        self.aliases: set[str] = set()  # alias flags that were used in any layer
        self.file_missing = False  # then what that file would have held is not reported missing as well

    def add(self, line: str) -> None:
        """One more problem; of a file that has a hundred, the rest is not looked for."""
        if len(self.lines) >= MOST_PROBLEMS:
            raise ConfigError([*self.lines, f"these are the first {MOST_PROBLEMS} problems; mend them, then ask again"])
        self.lines.append(one_line(line))

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def raise_if_any(self) -> None:
        if self.lines:
            raise ConfigError(self.lines)


def one_line(text: str) -> str:
    """A problem's text on one line that any terminal shows as it is: what a user's values bring along in line breaks
    and control characters is written out, and what is too long is cut in its middle."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
    half = MOST_SHOWN // 2
    return line if len(line) <= MOST_SHOWN else f"{line[:half]} … {line[-half:]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`, or None when nothing is close."""
    if len(str(word)) > MOST_COMPARED:
        return None
    matches = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str], mark: str = "`") -> str:
    """`; did you mean …?` for an error line, or nothing when no known name is close."""
    match = nearest(word, known)
    return f"; did you mean {mark}{match}{mark}?" if match else ""


def quoted(names: Iterable[str]) -> str:
    """Names as a readable list: `a`, `b`, `c`."""
    return ", ".join(f"`{name}`" for name in names)


def shown(value: object) -> str:
    """A value as YAML writes it: null, true, false."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
