"""Every key of a configuration has a test that sets it and sees its effect.

Such a test carries `@pytest.mark.keys("lora_r", "model(act).dropout", …)`. Fields of TrainingArguments that Keel does
not declare itself need none: tests/loader/test_training_arguments.py checks for all of them that they arrive.
"""

import ast
import re
from pathlib import Path

import pytest

from loader.schema import components, sections
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.keys import keys_of
from loader.schema.process_arguments import ProcessArguments
from loader.schema.training_arguments_fields import trainer_fields
from loader.schema.training_arguments_overlay import OVERLAY

TESTS = Path(__file__).resolve().parent


def declared_keys():
    """Paths of all keys that Keel declares, as in YAML; those of components as `section(component).key`."""
    keys = [*keys_of(HyperArguments), *keys_of(ProcessArguments), "extends"]
    for section, kind in {**sections.FREE_SECTIONS, **sections.OPTIONAL_SECTIONS, **sections.LIST_SECTIONS}.items():
        keys += [f"{section}.{name}" for name in keys_of(kind)] if kind is not None else [section]
    for section in sections.COMPONENTS:
        keys.append(f"{section}.name")
        for name in components.shipped(section):
            keys += [f"{section}({name}).{key}" for key in keys_of(components.component_module(section, name).Config)]
    return keys


def marked_keys(folder=TESTS):
    """Key -> the tests that are marked with it, as (file, test)."""
    marked = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.keys":
                        for argument in decorator.args:
                            marked.setdefault(argument.value, []).append((path, node.name))
    return marked


def test_every_key_has_a_test():
    assert sorted(set(declared_keys()) - set(marked_keys())) == []


def test_every_marked_key_exists():
    assert sorted(set(marked_keys()) - {*declared_keys(), *trainer_fields(), *OVERLAY}) == []


def test_a_marked_test_is_about_its_key():
    """The file uses the key's name outside the marks."""
    for key, places in marked_keys().items():
        for path, test in places:
            source = path.read_text(encoding="utf-8").replace("\\n", " ")
            text = re.sub(r"@pytest\.mark\.keys\([^)]*(\)[^)\n]*)*\)\n", "", source)
            assert re.search(rf"(?<![A-Za-z0-9]){re.escape(key.rpartition('.')[2])}(?![A-Za-z0-9_])", text), (key, test)


def test_the_marks_are_read(tmp_path):
    (tmp_path / "test_x.py").write_text('@pytest.mark.keys("a", "model(b).c")\ndef test_y():\n    pass\n')
    assert {key: places[0][1] for key, places in marked_keys(tmp_path).items()} == {
        "a": "test_y",
        "model(b).c": "test_y",
    }
    assert pytest.mark.keys("a").args == ("a",)
