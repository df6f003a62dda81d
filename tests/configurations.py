"""Mutated configurations for fuzzing: real files and command lines, changed in structure, text and flags."""

import copy
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from documents import SHARED, blocks, filled
from hypothesis import strategies as st

from loader.command_line.parser import argument_parser
from loader.resolve.type_check import members
from loader.schema.alias_flags import alias_paths
from loader.schema.components import component_module, shipped
from loader.schema.keys import keys_of, scalar_keys
from loader.schema.sections import COMPONENTS, FREE_SECTIONS, OPTIONAL_SECTIONS
from loader.sources.key_aliases import ALIASES, yaml_keys

ROOT = Path(__file__).resolve().parent.parent
FLAG_OF = {"training": "--training_config", "task": "--task_name", "model": "--model_config"}
SECTIONS = {**FREE_SECTIONS, **OPTIONAL_SECTIONS}
# A value that is replaced after the tree is dumped: no dumper writes such texts.
RAW = "KEELRAW{}X"


@dataclass
class Case:
    """Files, by name in the working folder, and the words after `train.py`."""

    files: dict[str, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def __repr__(self):
        files = "".join(f"\n--- {name}\n{content[:3000]!r}" for name, content in self.files.items())
        return f"words: {self.words!r}{files}"


# ---- unchanged configurations ----


@cache
def bases() -> tuple[tuple[str, str], ...]:
    """(kind, text): files of configs/, YAML examples of the documentation, and its command lines (kind `words`)."""
    bases = [
        (kind, path.read_text(encoding="utf-8"))
        for kind in FLAG_OF
        for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))
    ]
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((SHARED / "specs").glob("*.txt"))]
    for language, text in (block for document in documents for block in blocks(document)):
        if language not in ("yaml", "yml"):
            lines = re.findall(r"python train\.py([^#|>\n]*)", text.replace("\\\n", " "))
            bases += [("words", line) for line in lines if line.count('"') % 2 == line.count("'") % 2 == 0]
            continue
        try:
            bases.append(("training", yaml.safe_dump(filled(text), sort_keys=False)))
        except (yaml.YAMLError, AttributeError):
            continue
    return tuple(bases)


RUN_YAML = """\
task_name: text
output_dir: out
max_steps: 6
dataset: {name: text, path: data, block_size: 16}
model: {name: gpt, n_layer: 1, n_head: 2, n_embd: 16}
resume_from_checkpoint: null
...
"""
STATE = '{"global_step": 3, "max_steps": 6, "train_batch_size": 4, "stateful_callbacks": {}}'
MANIFEST = '{"format": 1, "step": 3, "world_size": 1, "files": {"run.yaml": {"size": 3, "sha256": "00"}}}'
META = '{"version": 1, "vocab_size": 65, "dtype": "uint16", "tokenizer": "char"}'
EARLIER_RUN = {
    "out/run.yaml": RUN_YAML,
    "out/checkpoint-3/run.yaml": RUN_YAML,
    "out/checkpoint-3/trainer_state.json": STATE,
    "out/checkpoint-3/manifest.json": MANIFEST,
    "out/checkpoint-3/config.json": '{"model_type": "gpt"}',
    "out/checkpoint-3/model.safetensors": "\x02\0\0\0\0\0\0\0{}",
    "data/meta.json": META,
    "data/train.bin": "\0\1" * 200,
    "data/val.bin": "\0\1" * 200,
}
RESUMING = (
    "--init_from resume --out_dir out",
    "--training_config out/run.yaml --resume_from_checkpoint auto",
    "--training_config out/run.yaml --resume_from_checkpoint newest",
    "--training_config out/run.yaml --resume_from_checkpoint out/checkpoint-3",
    "--dataset data --init_from prev_run --prev_run_ckpt out",
    "--dataset data --set model_name_or_path=out is_pretrained=true load_optimizer=true",
    "--dataset data --set lora_enable=true lora_weight_path=out/checkpoint-3",
)

# ---- inserted values ----

PLAIN = (
    None, True, False, 0, -1, 1, 2, 7, 0.5, -0.5, 1e-4, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
    2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, "", " ", "x", "a\0b", "no", "auto", "none", "null", "1e-4", "010",
    "inf", "0x10", "1_0", ".", "..", "/", "~", "~nobody", "/dev/null", "/dev/zero", "/proc/self/environ", "/etc/passwd",
    "data", "out", "out/checkpoint-3", "missing/folder", "file.yaml", "../../../../etc/passwd", "pipe", "a" * 300,
    "b/" * 3000, "c" * 20000, "ünïcödé", "日本語", "\U0001f600", "\x1b[31mred\x1b[0m", "a\nb", "a\r\nb", "tab\there",
    "\x85", "\u2028", "\u202e", "\ufeff", "%s %d {} {0}", "`quoted`", "$(reboot)", "; rm -rf /", "os.path", "a.b.c",
    "no.such.module", "__main__", "cosine", "SGD", "AdamW", "adamw", "Lion", "ReduceLROnPlateau", "StepLR", "best",
    "steps", "epoch", "wandb", "all", "eval_loss", "min", "gpt2", "org/model", "resume", "prev_run", "text", "records",
    "act", "gpt", "mlp", "auto", "classification", "\\", "(", "[", "*", "(a+)+$", "cuda:99", "ddp", "deepspeed",
    [], {}, [[]], [None], [1, "a", None], ["a"] * 50, {"name": None}, {"name": "x"}, {"name": []}, {"name": "SGD"},
    {"a": {"b": {"c": {}}}}, {"": 1}, {" ": 1}, {"a.b": 1}, {1: 2}, {None: 1}, {"name": "act", "hidden_dim": -1},
    [{"name": "LinearLR", "length": 3}, {"name": "CosineAnnealingLR"}], [0.9, 0.99], [0.9], [0.9, 0.99, 0.999], [-1],
    {"monitor": ["a", "a"], "mode": {"b": "min"}}, {"patience": -1}, {"decay": 2}, {"logger_type": "CSVLogger"},
)  # fmt: skip
RAW_TEXTS = (
    "${env:HOME}", "${env:KEEL_NO_SUCH}", "${env:KEEL_NO_SUCH:}", "${env:KEEL_NO_SUCH:[1, 2}", "${env:HOME",
    "$${env:HOME}", "${package:yaml}", "${package:no_such}", "${package:__main__}", "x${env:KEEL_NO_SUCH:1e3}y",
    "!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!!int 1", "!!int x", "!!float x",
    "!!bool x", "!!null x", "!!set {a, b}", "!!binary aGVsbG8=", "!local x", "*unknown", "&a [*a]", "&b {c: *b}", "<<",
    "{<<: {a: 1}}", "{<<: [1]}", "? [a]", "[" * 40 + "]" * 40, "[" * 3000, "{a: " * 2000, "1" * 5000, "1:" * 900 + "1",
    "0x" + "f" * 900, "1" * 900, ".5e99999", "1e-99999", '"\\0"', '"\\e[2J"', '"\\x85\\L"', '"\\ud800"', "|\n  block",
    ">-\n  folded", "'it''s'", "yes", "~", "0o17", "0b1", "2024-01-02", "12:30:45", "-.inf", ".NaN", "+1", "=", "- - a",
)  # fmt: skip
SPLICES = (
    b"\t", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\0", b"\x07", b"\x1b[31m", "\x85".encode(), "\u2028".encode(),
    "\u202e".encode(), b"\xff", b"\xc3", b"\xed\xa0\x80", b"---\n", b"...\n", b"%YAML 1.1\n---\n", b"%TAG ! !\n", b": ",
    b"- ", b"? ", b"# ", b"{", b"}", b"[", b"]", b",", b"'", b'"', b"&a ", b"*a", b"|", b">", b"!", b"@", b"`", b"  ",
    b"<<: *a\n", b"${env:", b"\nmax_steps: 1\n", b"\nextends: base.yaml\n", b"\nextends: gpt\n",
)  # fmt: skip
PARENTS = (
    "base.yaml", "other.yaml", "missing.yaml", "default", "gpt_base", ".", "..", "", "/dev/zero", "pipe", "~",
    "no such", ["other.yaml", "gpt_base"], ["base.yaml", None], [[]], {}, 1, "a" * 300, "http://example.org/x.yaml",
    "out/run.yaml", "../base.yaml", "latin.yaml", "folder.yaml",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 10**6, 2**31, 2**63, 10**30, 10**308, 0.5, 0.999, 1e-300, 1e-9, 1.0, 1.5, 1e18, 1e300)
ODD_KEYS = ("", " ", "name", "a.b", "\x1b[0m", "k" * 5000, "ключ", 5)
ODD_PATHS = (
    "", ".", "..", "a..b", ".a", "a.", " ", "a b", "model", "model.name", "model.x.y.z", "extends", "training_config",
    "a." * 30 + "b", "dataset", "dataset.name.x", "max_steps.x", "optimizer.x", "hub_token", "callbacks", "callbacks.0",
    "param_groups[0]", "\x1b", "trainer", "trainer.x", "lightning.lr_scheduler.class_name", "k" * 500, "a:b", "{", "<<",
)  # fmt: skip
ODD_WORDS = (
    "", "-", "--", "---", "-x", "x", "--=", "--=x", "--no", "--no_", "--x=y", "@base.yaml", "base.yaml", "-1",
    "\x1b[0m", "--learning", "--max_step", "--output_dir", "--set", "--check", "--check=x", "--check=false", "--ünï",
    "\udcff", "a\0b", "--seed=1", "--print_config=xml", "\n", "*", "--set=a", "--training_config", "=",
)  # fmt: skip
COMMANDS = (["--check"],) * 6 + (["--print_config"], ["--print_config", "json"], ["--check", "--print_config=yaml"])

# Each draw has its own lists and mappings: a later mutation changes them.
plain = st.sampled_from(PLAIN).map(copy.deepcopy)
values = st.one_of(plain, plain, st.integers(-5, 5), st.floats(), st.text(max_size=8))


@cache
def key_paths() -> tuple[str, ...]:
    """All keys: Keel's own, those of sections and components, and aliases."""
    paths = {*yaml_keys(), *ALIASES, *alias_paths()}
    paths |= {f"{section}.{name}" for section, kind in SECTIONS.items() for name in keys_of(kind)}
    for section in COMPONENTS:
        for name in shipped(section):
            paths |= {f"{section}.{key}" for key in ["name", *keys_of(component_module(section, name).Config)]}
    return tuple(sorted(paths))


@cache
def flags() -> tuple[str, ...]:
    names = set(argument_parser()._option_string_actions) - {"--help", "-h", "--print_schema", "--print-schema"}
    return tuple(sorted(names))


@cache
def fitting(path: str) -> st.SearchStrategy:
    """Values of a key's type, most of them unreasonable: they pass the check of types and fail later, if at all."""
    section, _, name = path.rpartition(".")
    keys = keys_of(SECTIONS[section]) if section in SECTIONS else scalar_keys()
    kinds = members(keys[name].annotation) if name in keys else ()
    choices = [word for kind in kinds for word in getattr(kind, "__args__", ()) if isinstance(word, (str, int))]
    numbers = [number for number in NUMBERS if float in kinds or isinstance(number, int) and int in kinds]
    strategies = [st.sampled_from(group) for group in (choices, numbers) if group] + [st.booleans()] * (bool in kinds)
    if str in kinds or not strategies:
        strategies.append(st.sampled_from([value for value in PLAIN if isinstance(value, str)]))
    return st.one_of(strategies)


@st.composite
def cases(draw) -> Case:
    """A real configuration after one to four mutations, and a command that checks or prints it."""
    kind, text = draw(st.sampled_from(bases()))
    if kind == "words":
        case = Case({"base.yaml": b"max_steps: 3\n"}, shlex.split(text))
    elif draw(st.integers(0, 7)) == 0:
        case = Case({name: content.encode("latin-1") for name, content in EARLIER_RUN.items()})
        case.words, case.files["base.yaml"] = shlex.split(draw(st.sampled_from(RESUMING))), b"max_steps: 3\n"
    else:
        case = Case({"base.yaml": text.encode()}, [FLAG_OF[kind], "base.yaml"])
    case.files["other.yaml"] = draw(st.sampled_from([b"seed: 3\n", b"extends: base.yaml\n", b"\xff", b"", b"- 1\n"]))
    for _ in range(draw(st.integers(1, 4))):
        mutate = draw(st.sampled_from((mutate_structure,) * 6 + (mutate_text,) * 3 + (mutate_flags,) * 4))
        mutate(draw, case)
    case.words += draw(st.sampled_from(COMMANDS))
    return case


# ---- structure ----


def mutate_structure(draw, case: Case) -> None:
    """Change keys or entries somewhere in a file."""
    name = draw(st.sampled_from(sorted(case.files)))
    try:
        tree = yaml.safe_load(case.files[name].decode())
    except Exception:  # PyYAML raises many kinds of errors
        return mutate_text(draw, case)
    if not isinstance(tree, dict):
        tree = {"max_steps": 3}
    raw: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("extends", *["known"] * 4, *["entry"] * 11)))
        if kind == "extends":
            tree["extends"] = copy.deepcopy(draw(st.sampled_from(PARENTS)))
        elif kind == "known":
            set_known_key(draw, tree)
        else:
            change_entry(draw, tree, draw(st.sampled_from(list(containers(tree)))), raw)
    if name.endswith(".json"):
        return None
    style, unicode = draw(st.sampled_from([False, False, True, None])), draw(st.booleans())
    try:
        text = yaml.safe_dump(tree, default_flow_style=style, sort_keys=False, allow_unicode=unicode)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return None
    for number, inserted in enumerate(raw):
        text = text.replace(RAW.format(number), inserted)
    case.files[name] = text.encode("utf-8", "surrogatepass")
    return None


def containers(value, levels: int = 6):
    """The value and the mappings and lists below it; an alias may lead in a circle."""
    yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, (dict, list)) and levels:
            yield from containers(child, levels - 1)


def change_entry(draw, tree: dict, container: dict | list, raw: list[str]) -> None:
    """Replace, delete, wrap, move or rename one entry of a mapping or list."""
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    change = draw(st.sampled_from((*["set"] * 4, *["raw"] * 2, "delete", "wrap", "nest", "move", "rename")))
    if change == "set":
        container[key] = draw(values)
    elif change == "raw":
        raw.append(draw(st.sampled_from(RAW_TEXTS)))
        container[key] = RAW.format(len(raw) - 1)
    elif change == "delete":
        del container[key]
    elif change == "wrap":
        value = container[key]
        container[key] = draw(st.sampled_from([[value], {"name": value}, [value, value], str(value)]))
    elif change == "nest":
        for _ in range(draw(st.sampled_from([2, 10, 45, 60, 200]))):
            container[key] = {"a": container[key]}
    elif change == "move":
        tree[str(key)] = container.pop(key)
    elif isinstance(container, dict):
        word = str(key)
        misspelled = (word[:-1], word + "x", word.upper(), word.replace("_", "-"), word[::-1], f"no_{word}")
        container[draw(st.sampled_from(misspelled + ODD_KEYS))] = container.pop(key)


def set_known_key(draw, tree: dict) -> None:
    """Set a key that exists, in its section or with dots at the top, to a value of its type or to any value."""
    path = draw(st.sampled_from(key_paths()))
    value = draw(fitting(path) if draw(st.booleans()) else values)
    *sections, key = [path] if draw(st.integers(0, 3)) == 0 else path.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[key] = value


# ---- text ----


def mutate_text(draw, case: Case) -> None:
    """Change bytes or lines of a file, or its encoding."""
    name = draw(st.sampled_from(sorted(case.files)))
    text = case.files[name]
    at = draw(st.integers(0, max(0, len(text) - 1)))
    lines = text.splitlines(keepends=True) or [b""]
    number = draw(st.integers(0, len(lines) - 1))
    before, line, after = b"".join(lines[:number]), lines[number], b"".join(lines[number + 1 :])
    changed = {
        "cut": text[:at],
        "splice": text[:at] + draw(st.sampled_from(SPLICES)) + text[at:],
        "flip": text[:at] + bytes(byte ^ draw(st.integers(1, 255)) for byte in text[at : at + 1]) + text[at + 1 :],
        "double": before + line + line + after,
        "swap": before + after + line,
        "indent": before + draw(st.sampled_from([b" ", b"  ", b"\t", b"- "])) + line + after,
        "drop": before + after,
        "repeat": (text + draw(st.sampled_from([b"\n", b"\n---\n"]))) * 2,
        "crlf": text.replace(b"\n", b"\r\n"),
        "tabs": text.replace(b"  ", b"\t"),
        "bom": b"\xef\xbb\xbf" + text,
        "utf16": text.decode("utf-8", "replace").encode("utf-16"),
        "empty": b"",
    }
    case.files[name] = changed[draw(st.sampled_from((*changed, "cut", "splice", "splice", "splice", "flip")))]


# ---- command line ----


def mutate_flags(draw, case: Case) -> None:
    """Add a flag in one of the ways that people write one, or drop, double or move words."""
    change = draw(st.sampled_from(("flag", "flag", "flag", "set", "set", "set", "word", "drop", "double", "shuffle")))
    at = draw(st.integers(0, max(0, len(case.words) - 1)))
    if change == "flag":
        name, value = draw(st.sampled_from(flags())), spelled(draw(values))
        written = [[name, value], [f"{name}={value}"], [name], [f"{name}="], [name[:-2], value], [name, value, value],
                   [name.replace("_", "-"), value], [name.replace("--", "-"), value], [f"--no_{name[2:]}"],
                   [f"{name} {value}"]]  # fmt: skip
        case.words += draw(st.sampled_from(written))
    elif change == "set":
        path = draw(st.one_of(st.sampled_from(key_paths()), st.sampled_from(key_paths()), st.sampled_from(ODD_PATHS)))
        value = draw(st.one_of(values.map(spelled), st.sampled_from(RAW_TEXTS)))
        case.words += ["--set", f"{path}{draw(st.sampled_from(['=', '=', '=', '=', '', '==']))}{value}"]
    elif change == "word":
        case.words.insert(at, draw(st.sampled_from(ODD_WORDS)))
    elif change == "drop":
        del case.words[at : at + 1]
    elif change == "double":
        case.words += case.words[at : at + 2]
    else:
        case.words = case.words[at:] + case.words[:at]


def spelled(value: object) -> str:
    """A value as someone would write it on a command line."""
    if isinstance(value, (dict, list)):
        return yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
