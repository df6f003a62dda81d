"""YAML with positions: what is read, and the one line for each thing that is refused."""

import pytest
import yaml

from loader.errors import ConfigError
from loader.sources.config_tree import SET
from loader.sources.layers import find_file
from loader.sources.yaml_reader import read_scalar, read_yaml


def write(tmp_path, text, name="x.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_values_agree_with_pyyaml_where_yaml_is_unambiguous(tmp_path):
    text = "a: 1\nb: [1.5, x, true]\nc: {d: null, e: 'quoted'}\nf: |\n  two\n  lines\ng: -3\nh: 0x1f\n"
    assert read_yaml(write(tmp_path, text)).plain() == yaml.safe_load(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),  # PyYAML alone reads a string here
        ("2E5", 2e5),
        ("010", "010"),  # YAML 1.1 would make it eight
        ("12:30", "12:30"),  # … and this 750
        ("2024-01-02", "2024-01-02"),
        (".inf", float("inf")),
        ("1_000", 1000),
        ("''", ""),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars(tmp_path, written, value):
    assert read_yaml(write(tmp_path, f"key: {written}\n")).plain() == {"key": value}


def test_positions_are_those_of_the_keys(tmp_path):
    tree = read_yaml(write(tmp_path, "a: 1\nmodel:\n  name: act\n"))
    origin = tree.value["model"].value["name"].origin
    assert (origin.line, origin.column) == (3, 3)
    assert str(origin).endswith("x.yaml:3")


def test_a_bare_word_keeps_its_spelling(tmp_path):
    node = read_yaml(write(tmp_path, "save_strategy: no\n")).value["save_strategy"]
    assert node.value is False and node.text == "no"


def test_merge_keys_lose_to_own_keys(tmp_path):
    text = "base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n"
    assert read_yaml(write(tmp_path, text)).plain()["mine"] == yaml.safe_load(text)["mine"]


def test_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEL_TEST_STEPS", "300")
    monkeypatch.delenv("KEEL_TEST_UNSET", raising=False)
    text = "a: ${env:KEEL_TEST_STEPS}\nb: x/${env:KEEL_TEST_STEPS}/y\n"
    text += "c: ${env:KEEL_TEST_UNSET:7}\nd: '${env:KEEL_TEST_STEPS}'\n"
    assert read_yaml(write(tmp_path, text)).plain() == {"a": 300, "b": "x/300/y", "c": 7, "d": "300"}


def test_packages(tmp_path, monkeypatch):
    """The folder of an installed package, which is looked for and not imported."""
    (tmp_path / "keel_test_package").mkdir()
    (tmp_path / "keel_test_package/__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "a: ${package:keel_test_package}/x.gguf\nb: '$${package:keel_test_package}'\nc: ${package:a.b}\n"
    assert read_yaml(write(tmp_path, text)).plain() == {
        "a": f"{tmp_path}/keel_test_package/x.gguf",
        "b": "${package:keel_test_package}",
        "c": "${package:a.b}",  # looking a submodule up would import its parent
    }


def test_what_a_variable_holds_is_not_expanded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEL_TEST_TEXT", "${package:yaml}")
    assert read_yaml(write(tmp_path, "a: ${env:KEEL_TEST_TEXT}\n")).plain() == {"a": "${package:yaml}"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "`a` at .*:3:1 is repeated; it was first set at line 1"),
        ("- a\n- b\n", "is a list"),
        ("word\n", "is a single value"),
        ("a:\n\tb: 1\n", ":2:1 is not valid YAML.*tab"),
        ("a: !!python/object/apply:os.system ['true']\n", "tag .*python.* is not allowed"),
        ("a: !custom 1\n", "tag `!custom` at .*:1:4 is not allowed"),
        ("a: ${env:KEEL_TEST_UNSET}\n", "variable `KEEL_TEST_UNSET` at .*:1:1 is not set"),
        ("a:\n  b: ${package:keel_no_such}/x\n", "`keel_no_such` at .*:2:3 is not installed: pip install keel-no-such"),
        ("a: ${package:__main__}\n", "`__main__` at .*:1:1"),
        ("a: ${package:json5_or_other}\n", "pip install json5-or-other"),
        ("a: ${package:abc}\n", "`abc` at .*:1:1 is a module without a folder"),
        ("a: {b: 1\n", "is not valid YAML"),
        ("? [1, 2]\n: 3\n", "a key at .*:1:3 is not text"),
        ("a: &a [*a]\n", "alias .*contains itself|not valid YAML"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
    ],
)
def test_refusals_are_one_line_with_a_place(tmp_path, monkeypatch, text, says):
    monkeypatch.delenv("KEEL_TEST_UNSET", raising=False)
    with pytest.raises(ConfigError, match=says) as raised:
        read_yaml(write(tmp_path, text))
    assert len(raised.value.problems) == 1 and "\n" not in raised.value.problems[0]


@pytest.mark.slow
def test_alias_bomb(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="expands to more than"):
        read_yaml(write(tmp_path, "\n".join(lines)))


def test_deep_nesting(tmp_path):
    with pytest.raises(ConfigError, match="nested too deeply|not valid YAML"):
        read_yaml(write(tmp_path, "a: " + "[" * 5000 + "]" * 5000))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    assert read_yaml(write(tmp_path, "# only a comment\n")).plain() == {}
    assert read_yaml(write(tmp_path, "---\n")).plain() == {}


def test_set_values_are_typed_as_yaml_types_them():
    assert read_scalar("[a, 1e-3]", SET).plain() == ["a", 1e-3]
    assert read_scalar("", SET).plain() is None


@pytest.mark.parametrize(("written", "exists"), [("mine.yml", "mine.yaml"), ("mine.yaml", "mine.yml")])
def test_the_other_suffix_of_yaml_is_suggested(tmp_path, monkeypatch, written, exists):
    monkeypatch.chdir(tmp_path)
    (tmp_path / exists).write_text("seed: 1\n")
    for name in (written, str(tmp_path / written)):
        with pytest.raises(ConfigError, match=f"{exists}`") as error:
            find_file("training", name)
        assert written in str(error.value)


@pytest.mark.parametrize("text", ["|", ">", " | "])
def test_the_mark_of_a_block_alone_is_a_character(text):
    assert read_scalar(text, SET).plain() == text.strip()
