"""Every key of a configuration has a test that flips it and sees its effect (`observed.py` says which)."""

import ast
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from observed import ARRIVES, OBSERVED, ONLY_ARRIVES, PASSED_ON, REFUSED

from loader.schema import components, sections
from loader.schema.keys import keys_of, scalar_keys
from loader.schema.training_arguments_fields import trainer_fields
from loader.schema.training_arguments_overlay import REPLACED

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = {"training_config"}  # a flag that no file may hold; observed all the same


def every_key():
    """Key paths, as they are written in YAML, of all that a training file may hold."""
    keys = [name for name in scalar_keys() if name not in REPLACED and name not in EVERYWHERE]
    declared = {**sections.FREE_SECTIONS, **sections.OPTIONAL_SECTIONS}
    declared |= {name: kind for name, kind in sections.LIST_SECTIONS.items() if kind is not None}
    for section, kind in declared.items():
        keys += [f"{section}.{name}" for name in keys_of(kind)]
    keys += [name for name, kind in sections.LIST_SECTIONS.items() if kind is None]
    for section in sections.COMPONENTS:
        keys.append(f"{section}.name")
        for name in components.shipped(section):
            config = components.component_module(section, name).Config
            # The networks share names, and each must see its own.
            keys += [f"{section}({name}).{key}" for key in keys_of(config)]
    return [*keys, "extends"]


def other_fields():
    """Fields of TrainingArguments come and go with its versions: exact only for the one that is pinned."""
    pinned = f"transformers=={version('transformers')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return set() if pinned else {*trainer_fields(), *ONLY_ARRIVES, *PASSED_ON}


def test_every_key_is_observed():
    missing = [key for key in every_key() if key not in {*OBSERVED, *REFUSED, *other_fields()}]
    assert not missing, f"no test is said to observe: {', '.join(missing)}; write one and name it in tests/observed.py"


def test_nothing_else_is():
    assert not set(OBSERVED) & set(REFUSED)
    gone = sorted({*OBSERVED, *REFUSED} - {*every_key(), *EVERYWHERE, *other_fields()})
    assert not gone, f"tests/observed.py names keys that there are no more: {', '.join(gone)}"


@pytest.mark.parametrize("place", sorted({*OBSERVED.values(), *REFUSED.values()}))
def test_the_observing_test_exists_and_speaks_of_the_key(place):
    text = source_of(place).replace("\\n", " ")
    if place == ARRIVES:  # it asks the schema for its keys, and so holds for each
        return
    keys = [key for key, its in {**OBSERVED, **REFUSED}.items() if its == place]
    unsaid = [key for key in keys if not re.search(rf"(?<![A-Za-z0-9]){last_word(key)}(?![A-Za-z0-9_])", text)]
    assert not unsaid, f"{place} never mentions {', '.join(unsaid)}"


def last_word(key):
    return re.escape(key.rpartition(".")[2])


def source_of(place):
    """A test with its decorators, and what of its module's own names it uses, itself or through those."""
    path, _, name = place.partition("::")
    assert (ROOT / path).is_file(), f"{place}: no such file"
    defined = definitions(path)
    assert name.startswith("test_") and name in defined, f"{place}: no such test"
    used, waiting = set(), [name]
    while waiting:
        each = waiting.pop()
        used.add(each)
        words = set(re.findall(r"\w+", defined[each])) & set(defined)
        waiting += [word for word in words - used if not word.startswith("test_")]
    return "\n".join(defined[each] for each in sorted(used))


@cache
def definitions(path):
    """Name -> source of the functions, classes and values that a file defines at its top."""
    text = (ROOT / path).read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for statement in ast.parse(text).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            first = min([statement.lineno, *(each.lineno for each in statement.decorator_list)])
            names = [statement.name]
        elif isinstance(statement, ast.Assign):
            first = statement.lineno
            names = [each.id for each in statement.targets if isinstance(each, ast.Name)]
        else:
            continue
        for name in names:
            found[name] = "\n".join(lines[first - 1 : statement.end_lineno])
    return found


def test_the_rule_would_notice(monkeypatch):
    """A key without a test, a test that is gone, one that never speaks of its key."""
    monkeypatch.delitem(OBSERVED, "ema.decay")
    with pytest.raises(AssertionError, match=r"ema\.decay"):
        test_every_key_is_observed()
    monkeypatch.setitem(OBSERVED, "ema.decays", "tests/test_every_key.py::test_nothing_else_is")
    with pytest.raises(AssertionError, match="ema.decays"):
        test_nothing_else_is()
    with pytest.raises(AssertionError, match="never mentions"):
        test_the_observing_test_exists_and_speaks_of_the_key("tests/test_every_key.py::test_nothing_else_is")
    with pytest.raises(AssertionError, match="no such test"):
        source_of("tests/test_every_key.py::test_that_is_gone")
