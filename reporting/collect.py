"""Read what the folder of a run contains. What is missing or damaged leaves a gap and, where it matters, a warning."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from reporting.curves import MetricsLog, group_of
from storage import safe_read

MOST_BYTES = 2**24  # of a small file
MOST_SETTINGS = 20_000  # aliases in a foreign run.yaml can multiply
MOST_SAMPLES = 40
MOST_NAMES = 5  # in a warning
MEDIA = {
    ".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
    ".gif": "image/gif", ".webp": "image/webp",
}  # fmt: skip
# Where scores, films and pictures are, below the folder of a run.
PLACES = ("", "*/", "eval/*/", "eval_runner/*/", "checkpoint-*/eval/")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNNAMED = ("out", "output")  # folders whose names say nothing
PROJECT_DEFAULTS = "configs/training/default.yaml:"
COMMENT = re.compile(r"# (effective: )?(\w+):? (.*?)(?:  # (.*))?$")


Defaults = Callable[[Mapping[str, str]], Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """One value of run.yaml: its text, and where it comes from."""

    text: str
    origin: str
    default: str | None = None  # None: unknown

    @property
    def differs(self) -> bool:
        """Whether the value is not the default one."""
        if self.default is not None and _value(self.text) == _value(self.default):
            return False
        return self.origin != "default" and PROJECT_DEFAULTS not in self.origin


@dataclass
class Run:
    """What is known of a run. Lists and mappings are empty where it recorded nothing.

    Attributes:
        settings: key.path -> value with its origin, in the order of run.yaml.
        effective: What was chosen during set-up, by name.
        adaptation: adaptation.json.
        starts: Lines of starts.jsonl: `time`, `step`, `notes`, `resumed`, `changed`, `data`, `model`.
        resumed: Entries of resumed.json: `step`, `changed`.
        samples: Lines of samples.jsonl: `step`, `eval_loss`, `text`; of eval.py: `source`, `text`.
        scores: File, relative to the folder -> name -> (value, low, high); low and high are None without an interval.
        media: Files, relative to the folder.
    """

    folder: Path
    name: str
    log: MetricsLog
    settings: dict[str, Setting] = field(default_factory=dict)
    effective: dict[str, str] = field(default_factory=dict)
    adaptation: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, dict[str, tuple[Any, Any, Any]]] = field(default_factory=dict)
    media: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return "train_loss" in self.log.series and (self.folder / "manifest.json").is_file()

    @property
    def resume_steps(self) -> list[int]:
        """The steps from which the run was resumed."""
        entries = [*self.starts, *self.resumed]
        return sorted({entry["step"] for entry in entries if isinstance(entry.get("step"), int) and entry["step"] > 0})


def read_run(folder: Path, log: MetricsLog, name: str, defaults: Defaults) -> Run:
    """Read a run's folder.

    Args:
        log: Of the folder's metrics.jsonl; it is updated.
        defaults: (key.path -> text) -> default values by key.path; a path that is missing has an unknown default.

    Raises:
        ValueError: the folder is no run's.
    """
    if not any((folder / file).is_file() for file in ("run.yaml", "metrics.jsonl")):
        raise ValueError(f"{folder} has neither run.yaml nor metrics.jsonl: name a run's output directory")
    run = Run(folder, name, log)
    log.update()
    _read_settings(run, defaults)
    run.adaptation = _json(run, "adaptation.json", dict)
    run.starts = _json_lines(run, "starts.jsonl")
    run.resumed = [entry for entry in _json(run, "resumed.json", list) if isinstance(entry, dict)]
    run.samples = [line for line in _json_lines(run, "samples.jsonl") if isinstance(line.get("text"), str)]
    run.samples = run.samples[-MOST_SAMPLES:]
    for path in _files(folder, {".json"}):
        _read_scores(run, path)
    tests = [key for key in log.series if group_of(key, log.series) == "Test"]
    if tests:
        values = {key.removeprefix("test_"): (log.summary(key)["last"][1], None, None) for key in tests}
        run.scores["test (metrics.jsonl)"] = values
    run.media = [path.relative_to(folder) for path in _files(folder, set(MEDIA))]
    _warn(run)
    return run


def _files(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    found = {path for place in PLACES for path in folder.glob(f"{place}*") if path.suffix.lower() in suffixes}
    yield from sorted(path for path in found if path.is_file())


def _json(run: Run, name: str, kind: type) -> Any:
    """Return the JSON value of a file, or an empty one; a damaged file is a warning."""
    try:
        value = safe_read.read_json(run.folder / name, MOST_BYTES)
        if not isinstance(value, kind):
            raise ValueError(f"holds no {kind.__name__}")
        return value
    except FileNotFoundError:
        return kind()
    except (ValueError, OSError) as error:
        run.warnings.append(f"{name} cannot be read: {safe_read.printable(str(error))}")
        return kind()


def _json_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """Return the objects in the lines of a file; other lines are counted in a warning."""
    try:
        lines = safe_read.read(run.folder / name).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        run.warnings.append(f"{name} cannot be read: {error.strerror}")
        return []
    values, damaged = [], 0
    for line in filter(str.strip, lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            damaged += 1
    if damaged:
        run.warnings.append(f"{name}: {damaged} damaged lines are left out")
    return values


def _read_settings(run: Run, defaults: Defaults) -> None:
    try:
        text = safe_read.read(run.folder / "run.yaml", MOST_BYTES).decode("utf-8", "replace")
        tree = yaml.compose(text, Loader=LOADER)
    except FileNotFoundError:
        run.warnings.append("run.yaml is missing: the configuration is unknown")
        return
    except (OSError, yaml.YAMLError, RecursionError) as error:
        run.warnings.append(f"run.yaml cannot be read: {safe_read.printable(str(error))}")
        return
    lines, found = text.split("\n"), {}
    for line in lines:
        if match := COMMENT.match(line):
            is_effective, name, value, origin = match.groups()
            if is_effective:
                run.effective[name] = value
            elif origin is not None:
                found[name] = (value, origin)
    for path, node in _leaves(tree):
        if len(found) >= MOST_SETTINGS:
            run.warnings.append(f"run.yaml has more than {MOST_SETTINGS:,} values; the rest is left out")
            break
        end = node.end_mark
        after = lines[end.line][end.column :] if end.line < len(lines) else ""
        found[path] = (text[node.start_mark.index : end.index].strip(), after.strip().removeprefix("#").strip())
    known = {
        path: yaml_text(value) for path, value in _flat(defaults({path: text for path, (text, _) in found.items()}))
    }
    run.settings = {path: Setting(*pair, known.get(path)) for path, pair in found.items()}


def _leaves(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style and depth < 20:
        for key, child in node.value:
            yield from _leaves(child, f"{path}.{key.value}" if path else str(key.value), depth + 1)
    elif path:
        yield path, node


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        yield name, value
        if isinstance(value, Mapping):
            yield from _flat(value, name)


def yaml_text(value: Any) -> str:
    """Return a value as YAML on one line."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    except yaml.YAMLError:  # of a class of its own
        return str(value)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _read_scores(run: Run, path: Path) -> None:
    """Add the scores in a JSON file of eval.py (scores.json, or one with a task and a checkpoint) or `eval_runner`."""
    place = path.relative_to(run.folder)
    is_named = path.name == "scores.json" or place.match("eval_runner/*/summary.json")
    try:
        status = path.stat()
    except OSError:
        return
    content = _scores(path, is_named, (status.st_mtime_ns, status.st_size))
    if content is None:
        return
    numbers = {key: value for key, value in _flat(content) if _is_number(value) and key not in ("seed", "episodes")}
    bases = {key.removesuffix("_rate") for key in numbers}
    bounds = {f"{base}_{bound}" for base in bases for bound in ("low", "high")}
    found = {}
    for key in numbers.keys() - bounds:
        base = key.removesuffix("_rate")
        found[key] = (numbers[key], numbers.get(f"{base}_low"), numbers.get(f"{base}_high"))
    source = str(place)
    run.scores[source] = {key: found[key] for key in numbers if key in found}
    texts = content.get("samples")
    for text in texts if isinstance(texts, list) else ():
        if isinstance(text, str):
            run.samples.append({"source": source, "text": text})


@functools.lru_cache(maxsize=10_000)  # `--watch` asks every two seconds, and tokenizers beside the scores are large
def _scores(path: Path, is_named: bool, version: tuple[int, int]) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it has no scores; `version`: its time and size."""
    try:
        content = safe_read.read_json(path, MOST_BYTES)
    except (ValueError, OSError):
        return None
    has_scores = isinstance(content, dict) and (is_named or {"task", "checkpoint"} <= content.keys())
    return content if has_scores else None


def _is_number(value: Any) -> bool:
    return value in ("nan", "inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _warn(run: Run) -> None:
    log = run.log
    if not (run.folder / "metrics.jsonl").is_file():
        run.warnings.append("metrics.jsonl is missing: there are no curves")
    elif not log.series:
        run.warnings.append("metrics.jsonl is empty: the run has logged nothing yet")
    if log.damaged:
        run.warnings.append(f"metrics.jsonl: {log.damaged} damaged lines are left out")
    if log.skipped:
        run.warnings.append(f"{log.skipped} optimizer steps were skipped: a loss or gradient was not finite")
    firsts = {}
    for name, points in log.series.items():
        if bad := [step for step, value in points if isinstance(value, str)]:
            firsts[name] = bad[0]
    if firsts:
        names = ", ".join(f"{name} (first at step {step:,})" for name, step in list(firsts.items())[:MOST_NAMES])
        more = f" and {len(firsts) - MOST_NAMES} more" if len(firsts) > MOST_NAMES else ""
        run.warnings.append(f"not finite: {names}{more}")


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its last part, or as many parts as make them distinct and say something."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        if count == 1 and any(each[-1] in UNNAMED for each in parts):
            continue
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def differences(runs: Sequence[Run]) -> dict[str, list[Setting | None]]:
    """Return the settings in which runs differ: key.path -> one for each run, None where the run has no such key."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    rows = {path: [run.settings.get(path) for run in runs] for path in paths if path != "output_dir"}
    return {path: row for path, row in rows.items() if any(not _same(row[0], other) for other in row[1:])}


def _same(one: Setting | None, other: Setting | None) -> bool:
    if one is None or other is None:
        return one is other
    first, second = _value(one.text), _value(other.text)
    return first == second or (isinstance(first, float) and isinstance(second, float) and math.isnan(first + second))
