"""Turn the command line into a checked RunConfig, or answer `--help`, `--check` and the like."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from loader.command_line.parser import Given, flag_lines, help_text, nearest_flag, parse_flags, parser_class
from loader.errors import ConfigError, one_line
from loader.resolve.resolver import resolve
from loader.resolve.run_config import RunConfig, as_if_launched
from loader.resolve.type_check import out_of_bounds
from loader.schema.installed import check_versions
from loader.schema.keys import keys_of

MOST_OF_NAME = 200  # characters of a file's name in an error
REMEDIES = {
    errno.ENAMETOOLONG: "no file system takes a name so long; shorten it",
    errno.ELOOP: "its links lead round in a circle; name another place",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
}
Built = TypeVar("Built")
Flags = TypeVar("Flags")


def command_line(main: Callable[..., Built], *arguments: Any, **options: Any) -> Built:
    """Return `main(*arguments)`; an error that has an exit code is printed, one line for each problem, and exits."""
    try:
        return main(*arguments, **options)
    except BaseException as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        if not (getattr(error, "is_on_every_rank", False) and process_rank()):
            print_problems(getattr(error, "problems", [str(error)]))
        raise SystemExit(code) from error


def run_config(arguments: list[str] | None = None, sweep: Callable[..., int] | None = None) -> RunConfig:
    """Return the run that the command line describes.

    Answers `--help`, `--check`, `--print_config` and `--print_schema` and leaves with exit code 0; runs a sweep (`-m`)
    and leaves with its exit code.

    Args:
        sweep: Runs a sweep, as `loader.sweep.run.sweep` does, from the command line, its parsed flags, a function that
            reads the command line of one run, and whether the runs are only asked about; returns the exit code.

    Raises:
        ConfigError: the configuration cannot be run.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII-only log must not turn help into a traceback
    try:
        outcome = refusing(_answer_or_resolve, arguments, sweep)
        sys.stdout.flush()
    except BrokenPipeError:  # `--print_config | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ConfigError as error:
        error.is_on_every_rank = True  # every process of a launch reads the same flags
        raise
    if isinstance(outcome, RunConfig):
        return outcome
    raise SystemExit(outcome)


def _answer_or_resolve(arguments: list[str] | None, sweep: Callable[..., int] | None) -> RunConfig | int:
    import_from_working_folder()
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = parse_flags(words)
    if given.command.completion is not None:
        from loader.command_line.completion import SCRIPTS

        print(SCRIPTS[given.command.completion], end="")
        return 0
    if given.asked_for_help:
        print(help_text())
        return 0
    check_versions()
    if given.command.print_schema:
        from loader.output.json_schema import json_schema

        print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
        return 0
    memory = None
    if given.command.given & {"estimate_memory", "gpu_memory", "num_processes"}:
        from loader.command_line.memory_request import memory_request

        memory = memory_request(words, given)
    if given.sweep.multirun:
        if sweep is None:
            raise ConfigError("-m starts several runs, and one is wanted here; leave it out")
        asks = given.command.check or given.command.print_config is not None
        return sweep(words, given.sweep, lambda one_of_them: _answer(parse_flags(one_of_them)), asks)
    if useless := sorted(given.sweep.given - {"multirun"}):
        raise ConfigError(f"`--{useless[0]}` is a flag of sweeps; give -m too, or leave it out")
    with as_if_launched(given.command.num_processes):
        run = _answer(given)
    return replace(run, memory=memory) if memory is not None and isinstance(run, RunConfig) else run


def import_from_working_folder() -> None:
    """Let components be imported from the working folder too; never from the folder of a run."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path and not os.path.exists(os.path.join(folder, "run.yaml")):
        sys.path.append(folder)


def _answer(given: Given) -> RunConfig | int:
    """Return the checked run, or print the answer and return its exit code."""
    from loader.checks import static_checks
    from loader.output import render

    command, run = given.command, resolve(given.hyper, given.command.set, aliases=given.aliases)
    if command.print_config:
        print(render.as_json(run) if command.print_config == "json" else render.as_yaml(run), end="")
        return 0
    problems = static_checks.check_run(run)
    if problems:
        raise ConfigError(problems)
    if command.check:
        print(render.summary(run))
        return 0
    return run


def entry_flags(kind: type[Flags], arguments: list[str] | None, prog: str, about: str | None) -> Flags:
    """Parse the flags of another entry (prepare.py, eval.py) into an instance of its dataclass.

    Answers `--help` with exit code 0.

    Raises:
        ConfigError: a flag is unknown, of the wrong type or out of its bounds.
    """
    parser = parser_class()(kind, allow_abbrev=False, prog=prog, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)

    def parsed() -> Flags:
        import_from_working_folder()
        namespace, unknown = parser.parse_known_args(arguments)
        if unknown:
            hint = nearest_flag(unknown[0], parser._option_string_actions)
            raise ConfigError(f"unknown flag `{unknown[0]}`{hint or f'; {prog} --help lists the flags'}")
        given = vars(namespace)
        if given.pop("help", False):
            print("\n".join([about or "", "", *flag_lines(kind)]))
            raise SystemExit(0)
        check_versions()
        for name, key in keys_of(kind).items():
            if name in given and (wanted := out_of_bounds(given[name], key.bounds)):
                raise ConfigError(f"flag `--{name} {given[name]}` must be {wanted}")
        return kind(**given)

    return refusing(parsed)


def refuse_useless(asked: Any, useless: Mapping[str, str]) -> None:
    """Raise ConfigError for a flag that was given and has no effect here.

    Args:
        asked: The flags of an entry, see `entry_flags`.
        useless: Flag -> why it has no effect.
    """
    for name, reason in useless.items():
        if name in asked.given:
            raise ConfigError(f"`--{name} {getattr(asked, name)}` has no effect: {reason}")


def check_output(flag: str, name: str, may_be_folder: bool = False) -> Path:
    """Return the file that a flag names, or the new or empty folder if its name has no suffix.

    Raises:
        ConfigError: it cannot be written; found before any work is done.
    """
    path = Path(name).expanduser()
    is_taken = path.is_dir() and not (may_be_folder and not path.suffix and not any(path.iterdir()))
    if not path.absolute().parent.is_dir() or is_taken or not os.access(path.absolute().parent, os.W_OK):
        kinds = "a file or an empty folder" if may_be_folder else "a file"
        raise ConfigError(f"`--{flag} {name}` cannot be written; name {kinds} in a folder that exists")
    return path


def print_problems(problems: Iterable[str]) -> None:
    """Print each problem as one `error:` line on stderr, with the rank if it is not 0."""
    prefix = f"[rank {process_rank()}] " if process_rank() else ""
    for line in problems:
        print(f"{prefix}error: {one_line(line)}", file=sys.stderr)


def process_rank() -> int:
    """Return the rank of this process; 0 without a launcher."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdigit() else 0


def refusing(build: Callable[..., Built], *arguments: object) -> Built:
    """Return `build(*arguments)`; its ValueError or OSError becomes a ConfigError of one line for each problem."""
    try:
        return build(*arguments)
    except (ConfigError, BrokenPipeError):
        raise
    except OSError as error:
        raise ConfigError(in_words(error)) from error
    except ValueError as error:
        raise ConfigError(getattr(error, "problems", None) or " ".join(str(error).split())) from error


def in_words(error: OSError) -> str:
    """Describe an error of the operating system: `/disk/out/run.yaml: No space left on device; make room`."""
    try:
        os.getcwd()
    except OSError:
        return "the working folder is gone; change into one that exists, and start again"
    if not error.strerror:
        return str(error)
    name = error.filename2 or error.filename  # of a rename, where to
    where = f"{os.fsdecode(name)[:MOST_OF_NAME]}: " if isinstance(name, (str, bytes)) else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{where}{error.strerror}{remedy}"
