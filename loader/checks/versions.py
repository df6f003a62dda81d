"""Whether the installed torch and transformers are ones that Keel runs on, read from what pip noted of them."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

from loader.errors import ConfigError

# Package -> (oldest release that will do, first that will not), as in setup.cfg.
NEEDED = {"torch": ((2, 10), None), "transformers": ((5, 17), (6,))}
RELEASE = re.compile(r"(?:\d+!)?(\d+(?:\.\d+)*)")


def check_versions() -> None:
    """Refuses packages that are too old or too new, before anything imports them.

    Raises:
        ConfigError: one line for each, with the version that is there and how to get one that will do.
    """
    problems = []
    for package, (oldest, too_new) in NEEDED.items():
        wanted = f"{package}>={_text(oldest)}" + (f",<{_text(too_new)}" if too_new else "")
        install = f"pip install '{wanted}'"
        version = installed_version(package)
        if version is None:
            problems.append(f"{package} is not installed: {install}")
            continue
        release = _release(version)
        if release is None:
            continue  # a build of one's own, which is trusted to know better
        if release < oldest:
            problems.append(f"{package} {version} is too old, Keel needs {_text(oldest)} or newer: {install}")
        elif too_new is not None and release >= too_new:
            problems.append(f"{package} {version} is too new, Keel knows releases below {_text(too_new)}: {install}")
    if problems:
        raise ConfigError(problems)


@cache
def installed_version(package: str) -> str | None:
    """A package's version, `2.13.0+cpu`; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...] | None:
    """`2.13.0a0+cpu` -> (2, 13, 0): a pre-release has what its release has. None: no number is in it."""
    found = RELEASE.match(version or "")
    return tuple(map(int, found[1].split("."))) if found else None


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
