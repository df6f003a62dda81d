"""Configuration files that were written to do harm: each is refused quickly with one line, and nothing of it runs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from audited import watching
from configurations import time_limit
from documents import checked
from fresh_interpreter import ROOT, python

from loader.errors import MOST_PROBLEMS, ConfigError, one_line
from loader.resolve.resolver import resolve
from loader.sources.yaml_reader import MOST_BYTES, MOST_LEVELS, MOST_NODES, read_yaml

SECONDS = 20  # by then a file that takes for ever has been let go


@pytest.fixture(autouse=True)
def nothing_hangs():
    with time_limit(SECONDS):
        yield


@pytest.fixture
def refused(tmp_path):
    """The one line with which a text is refused; nothing was changed, started or reached for on the way."""

    def read(text):
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with watching(tmp_path) as changes, pytest.raises(ConfigError) as raised:
            read_yaml(path)
        assert changes == []
        (line,) = raised.value.problems
        assert one_line(line) == line
        return line

    return read


# ---- tags ----


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch EXECUTED']",
        "!!python/object/new:os.system ['touch EXECUTED']",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch EXECUTED']",
        "{a: {b: [!!python/object/apply:os.system ['touch EXECUTED']]}}",
        "!!set {a, b}",
        "!!binary aGVsbG8=",
        "!include /etc/passwd",
    ],
)
def test_tags_are_refused_and_nothing_runs(refused, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    assert "is not allowed; a configuration holds plain values only" in refused(f"max_steps: {value}\n")
    assert not (tmp_path / "EXECUTED").exists()


def test_tags_of_keys_and_by_a_directive(refused):
    assert "is not allowed" in refused("%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ['true']\n")
    assert "is not" in refused("? !!python/object/apply:os.system ['true']\n: 1\n")


@pytest.mark.parametrize("value", ["!!int x", "!!float x", "!!bool x", "!!null x", "!!timestamp x", "!!int '3'"])
def test_a_tag_that_does_not_fit_its_value(refused, value):
    assert f"tag `{value.split()[0]}`" in refused(f"a: {value}\n")


# ---- bombs ----


def bomb(levels, width, first="[x]", layer="[{}]", use="{}"):
    """Anchors of which each holds the one before `width` times: width ** levels values."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} {layer.format(', '.join([use.format(f'*a{level - 1}')] * width))}")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        bomb(9, 10),
        bomb(9, 10, first="{k: 1}", layer="{{<<: [{}]}}"),
        f"a: [{'1, ' * (MOST_NODES + 1)}]\n",
    ],
    ids=["lists", "merges", "many"],
)
def test_bombs_stop_at_a_number_of_values(refused, text):
    assert f"expands to more than {MOST_NODES:,} values" in refused(text)


@pytest.mark.slow
def test_a_bomb_takes_no_memory(tmp_path):
    """In a process of its own, which may grow by 300 MB: expanded, the bomb would take terabytes."""
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb(12, 10))
    said = python(f"""
import resource
from loader.sources.yaml_reader import read_yaml
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300 * 2**20,) * 2)
try:
    read_yaml({str(path)!r})
except ValueError as error:
    print(error)
""")
    assert "expands to more than" in said


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: *a}\n", "a: &a {b: [1, {c: *a}]}\n", "a: &a {<<: *a}\n"])
def test_an_alias_of_itself(refused, text):
    assert "contains itself" in refused(text) or "not valid YAML" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 1_000_000,  # libyaml's composer would end in a segmentation fault
        "a: " + "{a: " * 20_000,
        "\n".join(" " * depth + "a:" for depth in range(1000)),
    ],
    ids=["open", "mappings", "block"],
)
def test_deep_nesting(refused, text):
    assert f"is nested too deeply: more than {MOST_LEVELS} levels" in refused(text)


def test_nesting_that_somebody_might_need(tmp_path):
    (tmp_path / "x.yaml").write_text("a: " + "[" * 40 + "]" * 40 + "\n")
    assert read_yaml(tmp_path / "x.yaml").value["a"]


# ---- numbers and long things ----


@pytest.mark.slow
def test_numbers_that_no_type_holds(in_root):
    """10^900 is a whole number to Python, and infinite to everything else."""
    for key in ("max_steps", "learning_rate", "seed"):
        code, lines = checked("--set", f"{key}={'1' * 900}")
        assert code in (0, 2) and len(lines) <= 1
        code, lines = checked("--set", f"{key}='{'1' * 5000}'")
        assert code == 2 and len(lines) == 1


def test_a_long_value_makes_no_long_line(in_root):
    code, lines = checked("--set", f"optim={'x' * 50_000}")
    assert code == 2 and all(len(line) < 2100 for line in lines)


def test_a_file_of_many_megabytes(refused, tmp_path):
    assert "is larger than 4 MB" in refused(b"# " + b"x" * MOST_BYTES)
    with open(tmp_path / "hole.yaml", "wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room
    with pytest.raises(ConfigError, match="larger than 4 MB"):
        read_yaml(tmp_path / "hole.yaml")


@pytest.mark.slow
def test_a_file_with_thousands_of_mistakes(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("".join(f"learning_rote{number}: 1\n" for number in range(20_000)))
    code, lines = checked("--training_config", str(path))
    assert code == 2 and len(lines) == MOST_PROBLEMS + 1 and "the first 100 problems" in lines[-1]


# ---- what a terminal or a file system would stumble over ----


@pytest.mark.parametrize(
    "text",
    ['a: "\\0"\n', '"\\0": 1\n', "a: \0\n", 'a: "\\ud800"\n', "a: b\x07\n", b"\xff\xfe\x00", b"a: \xed\xa0\x80\n"],
)
def test_characters_that_nothing_can_hold(refused, text):
    assert refused(text)


def test_error_lines_show_control_characters_written_out(tmp_path):
    """A value that paints the terminal, moves its cursor or turns the direction of reading shows as what it is."""
    path = tmp_path / "x.yaml"
    for text, shown in (
        ('optim: "\\e[2J\\r\\u202e\\u2028error: all is well"\n', "`optim: \\x1b[2J \\u202e error: all is well` at"),
        ('"\\e]0;title\\a": 1\n', "unknown key `\\x1b]0;title\\x07` at"),
    ):
        path.write_text(text)
        code, lines = checked("--training_config", str(path))
        assert code == 2 and len(lines) == 1 and shown in lines[0] and lines[0].isprintable()


def test_a_word_with_a_control_character(in_root):
    code, lines = checked("--set", "run_name=a\0b")
    assert code == 2 and "run_name" in lines[0]


def test_a_variable_in_another_encoding(refused, monkeypatch):
    monkeypatch.setitem(os.environ, "KEEL_TEST_LATIN", "caf\udce9")
    assert "is not UTF-8 text" in refused("run_name: ${env:KEEL_TEST_LATIN}\n")


def test_a_variable_never_becomes_structure(tmp_path, monkeypatch):
    """What the environment holds is one value, whatever YAML it spells."""
    hostile = "x\nmax_steps: 7\nmodel: {name: !!python/name:os.system y, <<: *z}  # ${package:yaml}"
    monkeypatch.setenv("KEEL_TEST_TEXT", hostile)
    path = tmp_path / "x.yaml"
    path.write_text(
        "run_name: ${env:KEEL_TEST_TEXT}\nreport_to: '${env:KEEL_TEST_TEXT}'\nb: [\"${env:KEEL_TEST_TEXT}\"]\n"
    )
    assert read_yaml(path).plain() == {"run_name": hostile, "report_to": hostile, "b": [hostile]}
    monkeypatch.setenv("KEEL_TEST_TEXT", "[1, 2]")
    assert read_yaml(path).plain()["run_name"] == "[1, 2]"


# ---- files that are none ----


@pytest.mark.parametrize("kind", ["device", "folder", "circle"])
def test_only_files_are_read(tmp_path, kind):
    path = tmp_path / "x.yaml"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    (tmp_path / "child.yaml").write_text(f"extends: {path}\n")
    for flag, file in (("training_config", path), ("task_name", path), ("training_config", tmp_path / "child.yaml")):
        code, lines = checked(f"--{flag}", str(file))
        assert code == 2 and len(lines) == 1, lines


@pytest.mark.slow
def test_a_pipe_that_is_already_open_is_a_file(tmp_path):
    """`--training_config <(…)` and `… | train.py --training_config /dev/stdin`: the shell has opened both."""
    command = f"{sys.executable} train.py --check --set output_dir={tmp_path} --training_config"
    for line in (f"{command} <(echo max_steps: 77)", f"echo max_steps: 77 | {command} /dev/stdin"):
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "77 steps" in done.stdout, done.stderr


def test_files_elsewhere_are_the_users_own(tmp_path, in_root):
    """A configuration may build on a file anywhere: it is read as a configuration, and never shown."""
    (tmp_path / "far.yaml").write_text("max_steps: 9\n")
    (tmp_path / "x.yaml").write_text(f"extends: {tmp_path / 'far.yaml'}\n")
    assert resolve(training_config=tmp_path / "x.yaml").hyper.max_steps == 9
    (tmp_path / "x.yaml").write_text("extends: ../../../../../../../../../../etc/passwd\n")
    code, lines = checked("--training_config", str(tmp_path / "x.yaml"))
    assert code == 2 and len(lines) == 1 and "root:x" not in lines[0]


# ---- modules ----


def test_a_script_named_as_a_module_does_not_end_the_program(tmp_path, monkeypatch, in_root):
    """A dotted name is a module of the user's own, which is imported. A script ends when it is; that is one line."""
    (tmp_path / "keel_test_script.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "keel_test_room").mkdir()
    (tmp_path / "keel_test_room/__init__.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("keel_test_room.policy", "keel_test_room.x"):
        code, lines = checked("--set", f"model.name={name}")
        assert code == 2 and len(lines) == 1 and "importing it failed: SystemExit" in lines[0]


@pytest.mark.parametrize(
    "name", ["..os", "os..path", "os/path", "os path", "os.system('x')", "__import__('os').x", "-", ""]
)
def test_a_name_is_a_module_name_or_nothing(name, in_root):
    with watching() as changes:
        code, lines = checked("--set", f'model.name="{name}"')
    assert code == 2 and lines and changes == []


def test_a_callback_is_looked_for_and_not_imported(tmp_path, monkeypatch, in_root):
    (tmp_path / "keel_test_callback.py").write_text("open('EXECUTED', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with watching(tmp_path) as changes:
        checked("--set", "callbacks=[keel_test_callback.Mine]", "output_dir=" + str(tmp_path / "out"))
    assert changes == [] and "keel_test_callback" not in sys.modules


def test_the_repositorys_own_files_are_within_all_limits():
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        assert read_yaml(Path(path)).is_mapping


# ---- our own code ----

# File -> what it may do, and why.
ALLOWED = {
    ("data/text/folder.py", "pickle"),  # an Unpickler that knows no class and no function
    ("data/signals/read_arrays.py", "pickle"),  # an Unpickler that knows NumPy's arrays alone
    ("data/signals/recording.py", "pickle"),  # the name of its error
    # a type annotation of the installed transformers, without builtins
    ("loader/schema/installed.py", "eval"),
}


def risky(tree):
    """What a module does that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            yield from {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"} & {
                n.split(".")[0] for n in names
            }
        if not isinstance(node, ast.Call):
            continue
        called, keywords = (
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        if called in ("eval", "exec", "compile", "os.system", "__import__"):
            yield called
        if called in ("torch.load", "yaml.unsafe_load", "yaml.full_load", "torch.package.PackageImporter"):
            yield called
        if called == "yaml.load" and keywords.get("Loader") not in ("yaml.SafeLoader", "yaml.BaseLoader"):
            yield called
        if keywords.get("shell") == "True" or keywords.get("allow_pickle", "False") != "False":
            yield f"{called}(…)"
        is_auto = called.endswith(".from_pretrained") and called.startswith("Auto")
        if is_auto and not {"trust_remote_code", None} & keywords.keys():  # None: by **options
            yield f"{called} without trust_remote_code, which asks at the terminal"


@pytest.mark.slow
def test_nothing_of_ours_runs_what_it_reads():
    rooms = ("configs", "data", "loader", "models", "sim", "storage", "trainer", "scripts", "benchmarks")
    found = set()
    for path in [*ROOT.glob("*.py"), *(each for room in rooms for each in (ROOT / room).rglob("*.py"))]:
        name = str(path.relative_to(ROOT))
        found |= {(name, what) for what in risky(ast.parse(path.read_text(encoding="utf-8")))}
    assert found - ALLOWED == set()
    examples = "import pickle\neval('1')\ntorch.load(x)\nnp.load(x, allow_pickle=True)\nAutoConfig.from_pretrained(x)"
    assert len(set(risky(ast.parse(examples)))) == 5
