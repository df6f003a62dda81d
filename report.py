"""Show runs on one HTML page: `python report.py OUT [OUT …] [--output page.html] [--watch [--port 8765]]`.

The page of one run is OUT/report.html by default, that of several report.html in the working folder. It needs no
network. `--watch` serves it on 127.0.0.1 with live curves, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader.command_line.entry import check_output, command_line, refusing
from loader.errors import ConfigError
from loader.resolve.run_config import OWN_DEFAULTS
from loader.schema.installed import REQUIRED
from loader.schema.keys import (
    COMPONENTS,
    FREE_SECTIONS,
    OPTIONAL_SECTIONS,
    Key,
    component_module,
    keys_of,
    scalar_keys,
    shipped,
)
from reporting.collect import Run, distinct_names, read_run
from reporting.curves import MetricsLog
from reporting.page import LibraryMissing, page
from storage.atomic import write_text

FILE = "report.html"
PORT = 8765


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; report.py --help shows the usage")


def main(arguments: list[str] | None = None) -> None:
    """Write the page, or serve it."""
    parser = Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="OUT", help="output directories of runs")
    parser.add_argument("--output", metavar="FILE", help="the page")
    parser.add_argument("--watch", action="store_true", help="serve the page on 127.0.0.1, with live curves")
    parser.add_argument("--port", type=int, help=f"of --watch, default {PORT}; 0: any that is free")
    asked = parser.parse_args(arguments)
    if asked.port is not None and not (asked.watch and 0 <= asked.port < 2**16):
        raise ConfigError(f"`--port {asked.port}` must be a port of --watch, 0 to 65535")
    if asked.watch and asked.output is not None:
        raise ConfigError("`--output` has no effect with --watch; leave one of them out")
    named: dict[Path, Path] = {}
    for path in (Path(name).expanduser() for name in asked.runs):
        named.setdefault(path.absolute(), path)
    folders = list(named.values())
    reader = RunReader(folders)
    if asked.watch:
        from reporting.watch import serve

        refusing(serve, reader.runs, PORT if asked.port is None else asked.port)
        return
    default = folders[0] / FILE if len(folders) == 1 else Path(FILE)
    output = check_output("output", asked.output) if asked.output else default
    text = refusing(page, refusing(reader.runs))
    refusing(write_text, output, text)
    print(f"report: {output}", flush=True)


def write_report(folder: Path) -> None:
    """Write OUT/report.html at the end of a run; a failure is one line on stderr, since the run itself is complete."""
    try:
        write_text(folder / FILE, page(RunReader([folder]).runs()))
    except LibraryMissing as error:
        print(f"no {FILE}: {error}, or set report: false", file=sys.stderr, flush=True)
    except Exception as error:  # whatever a damaged file leads to: the run has ended well
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {folder / FILE} was not written: {reason}", file=sys.stderr, flush=True)


class RunReader:
    """Reads runs again and again; of metrics.jsonl only what is new."""

    def __init__(self, folders: list[Path]):
        self.folders, self.names = folders, distinct_names(folders)
        self.logs = [MetricsLog(folder / "metrics.jsonl") for folder in folders]
        self.defaults: dict[str, Any] = {}

    def runs(self) -> list[Run]:
        """Raises ValueError if a folder is no run's."""
        return [
            read_run(folder, log, name, defaults)
            for folder, log, name in zip(self.folders, self.logs, self.names, strict=True)
        ]


def defaults(names: Mapping[str, str]) -> dict[str, Any]:
    """Return the default of each key by its path.

    Args:
        names: The components of a run, as `model.name: gpt`. Only those of Keel are read.
    """
    found = _defaults_of("", scalar_keys()) | OWN_DEFAULTS
    for section, kind in {**FREE_SECTIONS, **OPTIONAL_SECTIONS}.items():
        found |= _defaults_of(f"{section}.", keys_of(kind))
    for section in COMPONENTS:
        name = names.get(f"{section}.name")
        if name in shipped(section):
            found |= _defaults_of(f"{section}.", keys_of(component_module(section, name).Config))
    return found


def _defaults_of(prefix: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    found = {f"{prefix}{name}": key.default for name, key in keys.items() if key.default is not REQUIRED}
    return {
        path: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value for path, value in found.items()
    }


if __name__ == "__main__":
    command_line(main)
