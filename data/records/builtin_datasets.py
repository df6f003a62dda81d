"""Make `python_docstrings`, a small set of instructions from the source of the installed standard library.

A record asks for the docstring of a function, which is shown without it; the answer is the docstring's first paragraph.
Whole modules validate, since functions of one module resemble one another.
"""

import ast
import hashlib
import inspect
import json
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from data.cache import open_or_build
from data.records.source import HELD_OUT_FILE, TRAIN_FILE

INSTRUCTION = "Write a docstring for this Python function:"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib", "turtledemo"}
SHORTEST_ANSWER, LONGEST_ANSWER, LONGEST_SOURCE = 20, 300, 600  # characters
MOST_RECORDS = 2000
HELD_OUT_SHARE = 10  # one module in so many


def make(folder: Path) -> None:
    """See `data.records.prepare`."""
    if (folder / TRAIN_FILE).is_file():
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; remove the folder, or name the records with dataset.path")
    open_or_build(folder.parent, folder.name, lambda staging: write(staging, library()))


def library() -> Path:
    """Return the folder of the standard library's source."""
    return Path(sysconfig.get_paths()["stdlib"])


def write(folder: Path, root: Path) -> dict:
    """Write train.jsonl and val.jsonl of the functions below `root`; the same source gives the same files."""
    by_source: dict[str, tuple[str, dict]] = {}
    for module, source, answer in functions(root):
        messages = [
            {"role": "user", "content": f"{INSTRUCTION}\n\n```python\n{source}\n```"},
            {"role": "assistant", "content": answer},
        ]
        by_source.setdefault(source, (module, {"messages": messages, "source": module}))
    # Drawn by content: functions that are added to the library do not change which of the others are drawn.
    kept = set(sorted(by_source, key=_digest)[:MOST_RECORDS])
    lines = {TRAIN_FILE: [], HELD_OUT_FILE: []}
    for source, (module, record) in by_source.items():
        if source in kept:
            file = TRAIN_FILE if int(_digest(module), 16) % HELD_OUT_SHARE else HELD_OUT_FILE
            lines[file].append(json.dumps(record, ensure_ascii=False) + "\n")
    for file, records in lines.items():
        (folder / file).write_text("".join(records), encoding="utf-8")
    return {"instruction": INSTRUCTION}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def functions(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (module's file, function without its docstring, first paragraph of the docstring), in a fixed order."""
    for file in sorted(root.rglob("*.py")):
        module = file.relative_to(root)
        if LEFT_OUT & set(module.parts):
            continue
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError):
            continue  # not UTF-8, or broken on purpose
        lines = text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                pair = without_docstring(node, lines)
                if pair is not None:
                    yield module.as_posix(), *pair


def without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str] | None:
    """Return (source without the docstring, the docstring's first paragraph); None if one is unsuitable."""
    docstring = ast.get_docstring(node)
    if docstring is None or len(node.body) < 2:
        return None
    expression = node.body[0]
    if node.body[1].lineno <= expression.end_lineno:
        return None  # `"""…"""; return …` on one line
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    body = lines[node.lineno - 1 : expression.lineno - 1] + lines[expression.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(body)).strip()
    fits = SHORTEST_ANSWER <= len(paragraph) <= LONGEST_ANSWER and len(source) <= LONGEST_SOURCE
    return (source, paragraph) if fits and paragraph[0].isalpha() else None
