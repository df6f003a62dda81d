"""Paths of source files in the documentation exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (ROOT, ROOT / "examples")
EXAMPLES = {"models/foo.py", "data/bar.py", "models/losses/NAME.py"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_source_files_named_in_a_document_exist(document):
    paths = set(re.findall(r"\b\w+(?:/\w+)+\.py\b", document.read_text(encoding="utf-8")))
    assert not [path for path in paths - EXAMPLES if not any((folder / path).is_file() for folder in FOLDERS)]
