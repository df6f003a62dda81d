"""Every key of a configuration has a test that sets it and sees its effect.

Such a test carries `@pytest.mark.keys("lora_r", "model(act).dropout", …)`. Fields of TrainingArguments that Keel does
not declare itself need none: tests/loader/test_training_arguments.py checks for all of them that they arrive.
"""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

from loader.schema import keys as schema
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.installed import trainer_fields
from loader.schema.keys import NEEDS, ON_RESUME, keys_of
from loader.schema.process_arguments import ProcessArguments

TESTS = Path(__file__).resolve().parent


def declared_keys():
    """Paths of all keys that Keel declares, as in YAML; those of components as `section(component).key`."""
    keys = [*keys_of(HyperArguments), *keys_of(ProcessArguments), "extends"]
    for section, kind in {
        **schema.FREE_SECTIONS,
        **schema.OPTIONAL_SECTIONS,
        **schema.LIST_SECTIONS,
    }.items():
        keys += [f"{section}.{name}" for name in keys_of(kind)] if kind is not None else [section]
    for section in schema.COMPONENTS:
        keys.append(f"{section}.name")
        for name in schema.shipped(section):
            keys += [f"{section}({name}).{key}" for key in keys_of(schema.component_module(section, name).Config)]
    return keys


@functools.cache
def marked_tests(folder=TESTS):
    """All marked tests, as (file, name, keys, source).

    The source is that of the test without its marks, and of the top-level names of its file that it uses, directly or
    through each other; other tests are left out.
    """
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.keys" not in text:
            continue
        tree = ast.parse(text)
        top_level = definitions(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [each for each in node.decorator_list if is_keys_mark(each)]
                if marks:
                    node.decorator_list = [each for each in node.decorator_list if each not in marks]
                    keys = [argument.value for mark in marks for argument in mark.args]
                    found.append((path, node.name, keys, source_with_helpers(node, top_level)))
    return found


def is_keys_mark(decorator):
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.keys"


def definitions(tree):
    """Name -> the statement that defines it at the top level of a file."""
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            found |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
    return found


def source_with_helpers(test, top_level):
    used, waiting = {test.name: test}, [test]
    while waiting:
        words = set(re.findall(r"\w+", ast.unparse(waiting.pop())))
        for name in words & set(top_level) - set(used):
            if not name.startswith("test_"):
                used[name] = top_level[name]
                waiting.append(top_level[name])
    return "\n".join(ast.unparse(statement) for statement in used.values()).replace("\\n", " ")


def names_key(source, key):
    """Whether a source uses the last part of a key as a word of its own."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(key.rpartition('.')[2])}(?![A-Za-z0-9_])", source) is not None


def all_marked_keys():
    return {key for _, _, keys, _ in marked_tests() for key in keys}


@pytest.mark.slow
def test_every_key_has_a_test():
    assert sorted(set(declared_keys()) - all_marked_keys()) == []


def test_every_marked_key_exists():
    of_transformers = itertools.chain(trainer_fields(), NEEDS, *ON_RESUME.values())
    assert sorted(all_marked_keys() - {*declared_keys(), *of_transformers}) == []


def test_a_marked_test_uses_its_key():
    missing = [
        (str(path.relative_to(TESTS)), test, key)
        for path, test, keys, source in marked_tests()
        for key in keys
        if not names_key(source, key)
    ]
    assert missing == []


def test_what_counts_as_use_of_a_key(tmp_path):
    """The test's own source and its helpers count; its marks, other tests and longer names do not."""
    (tmp_path / "test_x.py").write_text(
        "LINE = 'a: 1'\n"
        "def helper():\n    return LINE\n"
        "def test_other():\n    b = 1\n"
        '@pytest.mark.keys("a", "model(m).b", "c")\n'
        "def test_y():\n    helper(); test_other(); c_long = 1\n"
    )
    [(path, test, keys, source)] = marked_tests(tmp_path)
    assert (path.name, test, keys) == ("test_x.py", "test_y", ["a", "model(m).b", "c"])
    assert [names_key(source, key) for key in keys] == [True, False, False]
    assert pytest.mark.keys("a").args == ("a",)


def test_a_key_without_a_test_is_noticed(monkeypatch):
    monkeypatch.setattr(schema, "FREE_SECTIONS", {**schema.FREE_SECTIONS, "brand_new": None})
    with pytest.raises(AssertionError, match="brand_new"):
        test_every_key_has_a_test()
