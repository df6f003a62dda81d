"""Prepare the data sets that are known by name, on first use.

shakespeare_char   the tiny Shakespeare text of char-rnn, a character a token: nanoGPT's first example
python_stdlib      the source of Python's own standard library: real text that every machine has
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

from data.text.config import READY, find
from data.text.preparing import PreparationSettings, prepare
from storage import atomic

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT_SECONDS = 30
# Tests hold strings made to be strange, and installed packages differ from machine to machine.
NOT_THE_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


def settings_of(name: str, cache_dir: Path, given: dict) -> PreparationSettings:
    """Return the settings of a built-in data set; those that are `given` replace its own.

    Raises:
        ValueError: Its text is missing and cannot be downloaded.
    """
    settings: dict = {}
    if name == "shakespeare_char":
        settings["tokenizer"] = "char"
        if "text" not in given:
            settings["text"] = str(shakespeare(cache_dir))
    else:
        settings["tokenizer"] = "bpe:4096"
        if "text" not in given:
            library = os.path.realpath(sysconfig.get_path("stdlib"))
            settings |= {"text": library, "only": ".py", "without": NOT_THE_LIBRARY}
    return PreparationSettings(**(settings | given))


def shakespeare(cache_dir: Path) -> Path:
    """Return the file of the text, downloaded once into cache_dir/downloads."""
    path = cache_dir / "downloads" / "tinyshakespeare.txt"
    if path.is_file() and _digest(path.read_bytes()) == SHAKESPEARE_SHA256:
        return path
    remedy = "with the text at hand: python prepare.py --dataset shakespeare_char --text FILE"
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read()
    except OSError as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", error)
        raise ValueError(f"cannot download {SHAKESPEARE_URL} ({reason}); {remedy}") from error
    if _digest(text) != SHAKESPEARE_SHA256:
        raise ValueError(f"{SHAKESPEARE_URL} is not the text it was (another checksum); {remedy}")
    with atomic.replacing(path) as part:
        part.write_bytes(text)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def prepared(config, run):
    """Prepare the built-in data sets that the configuration names and that are missing; return the configuration."""
    for name in config.paths():
        if name in READY and find(name, run.cache_dir) is None:
            folder = run.cache_dir / "datasets" / name
            print(f"no data set {name} yet: preparing it into {folder}", flush=True)
            prepare(folder, settings_of(name, run.cache_dir, {}), report=lambda line: None)
    return config
