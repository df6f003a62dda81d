"""Whether the Hugging Face hub can be reached: asked once, before anything waits for its retries."""

from __future__ import annotations

import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
