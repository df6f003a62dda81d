"""Serve the page of runs on this machine alone, with live curves."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from reporting.collect import Run
from reporting.page import MOST_BYTES, head, json_text, page, parts, runs_data, sections_html

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")  # another name in a request is a foreign page's, resolved to this machine


def serve(read: Callable[[], Sequence[Run]], port: int) -> None:
    """Serve the page until Ctrl-C.

    Args:
        read: Returns the runs as they are now.
        port: 0: any that is free.

    Raises:
        ValueError: there is nothing to show, or the port is taken.
    """
    page(read())
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if (self.headers.get("Host") or "").partition(":")[0] not in HOSTS or url.path not in ("/", "/data.json"):
                self.send_error(404)
                return
            try:
                with lock:
                    runs = read()
                    text = page(runs, live=True) if url.path == "/" else changes(runs, parse_qs(url.query))
            except (ValueError, OSError) as error:  # the folder was moved away
                self.send_error(503, explain=str(error))
                return
            content, kind = text.encode(), "text/html; charset=utf-8" if url.path == "/" else "application/json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """No line for each request."""

    try:
        server = ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise ValueError(f"`--port {port}`: {error.strerror}; name another, 0 for any that is free") from error
    for stop in (signal.SIGINT, signal.SIGTERM):  # a background job of a script ignores Ctrl-C otherwise
        signal.signal(stop, signal.default_int_handler)
    with server:
        print(f"http://{ADDRESS}:{server.server_port} (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)


def changes(runs: Sequence[Run], known: dict[str, list[str]]) -> str:
    """Return what a page has to update, as JSON.

    Args:
        known: Hashes of what the page shows, by name, as they were sent with it.
    """
    current = {
        "data": json_text(runs_data(runs)),
        "head": json.dumps(head(runs)),
        "parts": json.dumps(sections_html(parts(runs, MOST_BYTES // 2))),
    }
    hashes = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in current.items()}
    new = [f'"{name}":{text}' for name, text in current.items() if known.get(name) != [hashes[name]]]
    return "{" + ",".join([f'"hashes":{json.dumps(hashes)}', *new]) + "}"
