"""The values that a command line gives to a sweep: `a=1,2`, `a=range(1,10,2)`, `a=tag(log, interval(1e-5,1e-2))`."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from loader.command_line.parser import parser_class, split_settings
from loader.errors import ConfigError
from loader.schema.hyper_arguments import SweepArguments

PAIRS = {"[": "]", "{": "}", "(": ")", '"': '"', "'": "'"}
CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
WORDS = "a,b  choice(a,b)  range(start,stop,step)  interval(low,high)  int(interval(…))  tag(log, interval(…))"
HERE = re.compile(r"\s*(choice|range|interval|int|tag)\(")
NOT_HERE = re.compile(r"\s*(glob|sort|shuffle|float|str|bool|json_str|extend_list)\(")  # Hydra's other words


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`, both included; uniform in their logarithm if `is_log`."""

    low: float
    high: float
    is_int: bool = False
    is_log: bool = False

    @property
    def ends(self) -> tuple[str, str]:
        return self.shown(self.low), self.shown(self.high)

    @property
    def size(self) -> float:
        """How many numbers are in it."""
        return round(self.high - self.low) + 1 if self.is_int else math.inf

    def shown(self, value: float) -> str:
        return str(round(value)) if self.is_int else repr(float(value))

    def draw(self, source: random.Random) -> str:
        half = 0.5 if self.is_int else 0.0  # so that the ends are as likely as the numbers between them
        low, high = self.low - half, self.high + half
        value = math.exp(source.uniform(math.log(low), math.log(high))) if self.is_log else source.uniform(low, high)
        return self.shown(min(max(value, self.low), self.high))


Option = tuple[str, ...] | Interval  # the values of a key as text


@dataclass(frozen=True)
class Space:
    """What a sweep's command line leaves open.

    Attributes:
        flags: The words that all runs have, without the flags of the sweep.
        words: All words, without the flags of the sweep.
        options: Each bare word's key and values, in the order of the command line; of a repeated key the last word's.
    """

    flags: list[str]
    words: list[str]
    options: list[tuple[str, Option]]

    @classmethod
    def read(cls, words: list[str]) -> Space:
        """Read a command line; a ConfigError names the bare word that cannot be read."""
        flags, settings = split_settings(words)
        parser = parser_class()((SweepArguments,), allow_abbrev=False, add_help=False)
        pairs = [setting.partition("=")[::2] for setting in settings]
        flags = parser.parse_known_args(flags)[1]
        return cls(flags, [*flags, *settings], [(key, option_of(key, text)) for key, text in dict(pairs).items()])

    @property
    def varying(self) -> dict[str, Option]:
        """The keys that have several values."""
        return {key: option for key, option in self.options if isinstance(option, Interval) or len(option) > 1}

    @property
    def size(self) -> float:
        """The number of different combinations."""
        return math.prod(each.size if isinstance(each, Interval) else len(set(each)) for each in self.varying.values())

    def settings(self, chosen: Sequence[str]) -> list[str]:
        """The bare words of a run, from a value for each key of `varying`."""
        values = dict(zip(self.varying, chosen, strict=True))
        return [f"{key}={values[key] if key in values else option[0]}" for key, option in self.options]

    def grid(self) -> Iterator[tuple[str, ...]]:
        """All combinations, the last key fastest.

        Raises:
            ConfigError: an interval has no end of values.
        """
        for key, option in self.varying.items():
            if isinstance(option, Interval):
                raise ConfigError(
                    f"`{key}`: an interval has no list of values; give --sampler random or --sampler optuna, or "
                    f"`{key}=range(…)`"
                )
        return itertools.product(*self.varying.values())

    def random(self, seed: int) -> Iterator[tuple[str, ...]]:
        """Different combinations at random, without end unless all are drawn; more trials begin with the same ones."""
        source, seen = random.Random(seed), set()
        while len(seen) < self.size:
            chosen = tuple(
                each.draw(source) if isinstance(each, Interval) else source.choice(each)
                for each in self.varying.values()
            )
            if chosen not in seen:
                seen.add(chosen)
                yield chosen

    def corners(self) -> Iterator[tuple[str, ...]]:
        """Combinations in which each value, and each end of an interval, occurs: to be checked before a sweep."""
        values = [each.ends if isinstance(each, Interval) else each for each in self.varying.values()]
        for row in range(max(map(len, values), default=1)):
            yield tuple(each[min(row, len(each) - 1)] for each in values)


def option_of(key: str, text: str) -> Option:
    """The values of a bare word `key=text`."""
    parts, setting = choices(text), f"`{key}={text}`"
    if foreign := next(filter(None, map(NOT_HERE.match, parts)), None):
        raise ConfigError(f"{setting}: the sweep word `{foreign[1]}` is not available; there are {WORDS}")
    calls = [part for part in parts if HERE.match(part)]
    if calls and len(parts) > 1:
        raise ConfigError(f"{setting}: `{calls[0]}` must stand alone; write all values as one list, {key}=a,b,c")
    if calls:
        try:
            return _read(text.strip())
        except (ValueError, InvalidOperation):
            raise ConfigError(f"{setting}: {text} cannot be read as a sweep word; there are {WORDS}") from None
    if len(parts) > 1 and not all(parts):
        raise ConfigError(f"{setting}: a value between the commas is empty")
    return tuple(parts)


def choices(text: str) -> list[str]:
    """Split a value at its commas, except those in brackets and quotes: `[1,2],3` is `[1,2]` and `3`."""
    parts, closing = [""], []
    for character in text:
        if closing and character == closing[-1]:
            closing.pop()
        elif character in PAIRS and not (closing and closing[-1] in "\"'"):
            closing.append(PAIRS[character])
        elif character == "," and not closing:
            parts.append("")
            continue
        parts[-1] += character
    return [text] if closing else parts


def _read(word: str) -> Option:
    """The values of a sweep word.

    Raises:
        ValueError, InvalidOperation: it cannot be read.
    """
    call = CALL.fullmatch(word)
    name, text = call.groups() if call else ("", word)
    match name, [part.strip() for part in choices(text)]:
        case "choice", values if all(values):
            return tuple(values)
        case "range", [_] | [_, _] | [_, _, _] as numbers:
            return _range(*map(Decimal, numbers))
        case "interval", [low, high] if float(low) < float(high):
            return Interval(float(low), float(high))
        case "int", [inner] if isinstance(each := _read(inner), Interval) and (each.low % 1, each.high % 1) == (0, 0):
            return replace(each, is_int=True)
        case "tag", ["log", inner] if isinstance(each := _read(inner), Interval) and each.low > 0:
            return replace(each, is_log=True)
    raise ValueError(word)


def _range(start: Decimal, stop: Decimal | None = None, step: Decimal = Decimal(1)) -> Option:
    """From `start` up to, but without, `stop`; exact, as 0.1 + 0.2 is not with binary numbers."""
    start, stop = (Decimal(0), start) if stop is None else (start, stop)
    if not step or not stop.is_finite() or (stop - start) / step <= 0:
        raise ValueError("there is no number in it")
    return tuple(str(start + step * index) for index in range(math.ceil((stop - start) / step)))
