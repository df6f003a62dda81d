"""What a piece of code changes or runs outside itself, seen by the interpreter's own audit events.

An audit hook stays for good, so there is one, and while nothing is being watched it only looks at a variable.
"""

import contextlib
import os
import sys
from pathlib import Path

# Events of the interpreter that change a file system, start a program, reach for a network or load code.
CHANGES = frozenset(
    {
        "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
        "os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.system", "os.exec", "os.fork", "os.forkpty",
        "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen", "socket.connect", "socket.bind",
        "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "pickle.find_class", "urllib.Request",
        "webbrowser.open",
    }
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = (os.devnull, "/dev/tty")

_seen: list[str] | None = None
_foreign: str = ""
_installed = False


def _hook(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = flags & WRITING if isinstance(flags, int) else set(str(mode)) & set("wax+")
        if writes and path not in HARMLESS:
            _seen.append(f"open {path!r} to write")
    elif event in CHANGES:
        _seen.append(f"{event} {arguments!r}"[:300])
    elif event == "exec" and _foreign and str(getattr(arguments[0], "co_filename", "")).startswith(_foreign):
        _seen.append(f"runs {arguments[0].co_filename}")


@contextlib.contextmanager
def watching(foreign: str | os.PathLike = ""):
    """Yields the list of what was changed or started meanwhile; code from below `foreign` counts too."""
    global _seen, _foreign, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    found: list[str] = []
    _seen, _foreign = found, str(Path(foreign)) if foreign else ""
    try:
        yield found
    finally:
        _seen = None
        sys.dont_write_bytecode = bytecode
