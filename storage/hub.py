"""Find weights: a .gguf file, or files of the hub, if it can be reached."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def find_gguf(place: str | Path, unless: tuple[str, ...]) -> Path | None:
    """Return `place` if it is a .gguf file, or the only one of a folder without any of the files `unless`; else None.

    Raises:
        ValueError: There are several, or the package that reads them is missing.
    """
    path = Path(os.path.expanduser(place))
    files = [path] if path.suffix == ".gguf" and os.path.isfile(path) else []
    if os.path.isdir(path) and not any((path / name).is_file() for name in unless):
        files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{place} has {len(files)} .gguf files ({files[0].name} …); name one of them")
    if files and importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{place}: reading a .gguf file needs the package gguf: pip install gguf")
    return files[0] if files else None


SECONDS = 5.0  # to look up the host and to connect


def hub_is_reachable() -> bool:
    """Whether something answers at the hub's address, or at the proxy's; False in offline mode."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        return False
    return _answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@cache
def _answers(url: str) -> bool:
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    parts = urlsplit(proxy) if proxy else parts
    address = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=SECONDS).close()
            connected.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    thread.start()
    thread.join(SECONDS)
    return connected.is_set()
