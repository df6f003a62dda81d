"""`--estimate_memory` and the flags that belong to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loader.command_line.parser import Given
from loader.errors import ConfigError
from loader.resolve.run_config import MemoryRequest, launched_processes

# As GPUs are sold, 24 GB are 24 · 2**30 bytes.
UNITS = {"": 2**30, "g": 2**30, "m": 2**20, "t": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([gmt]?)(?:i?b)?", re.IGNORECASE)


def memory_request(words: Sequence[str], command_line: Given) -> MemoryRequest | None:
    """Return what is to be estimated; None: nothing.

    Raises:
        ConfigError: not a size, or a flag without `--estimate_memory`, or this together with a sweep.
    """
    command = command_line.command
    given = {"gpu_memory": command.gpu_memory, "num_processes": command.num_processes}
    if command.estimate_memory is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"`--{name} {value}` has no effect without --estimate_memory; add it")
        return None
    if command_line.sweep.multirun:
        raise ConfigError("`--estimate_memory` is of one run; leave -m out")
    match = SIZE.fullmatch((command.gpu_memory or "").strip())
    if command.gpu_memory is not None and (match is None or not float(match[1])):
        raise ConfigError(f"`--gpu_memory {command.gpu_memory}` is not a size of memory; write 24GiB, or 800MiB")
    size = int(float(match[1]) * UNITS[match[2].lower()]) if match else None
    return MemoryRequest(tuple(words), command.estimate_memory, size, command.num_processes or launched_processes())
