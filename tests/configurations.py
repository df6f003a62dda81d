"""Broken configurations: real files and command lines, mutated in structure, text and flags; and how to fuzz with them.

KEEL_FUZZ_EXAMPLES and KEEL_FUZZ_SEED try more than CI does.
"""

import contextlib
import copy
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from documents import SHARED, blocks, filled
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
LOADER, DUMPER = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "SafeDumper"))
FLAG_OF = {"training": "--training_config", "task": "--task_name", "model": "--model_config"}
# A value in a tree that is dumped becomes one of these texts afterwards: what no dumper writes.
RAW = "KEELRAW{}X"


class Hang(BaseException):
    """Not an Exception: no code under test may catch it as one of its own."""


@contextlib.contextmanager
def time_limit(seconds):
    def ring(*_):
        raise Hang(f"no answer after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(strategy, check, examples):
    """Return what `check` returns for that many drawn examples."""
    results = []

    @settings(
        max_examples=int(os.environ.get("KEEL_FUZZ_EXAMPLES", examples)),
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run_example(example):
        results.append(check(example))

    if "KEEL_FUZZ_SEED" in os.environ:
        run_example = seed(int(os.environ["KEEL_FUZZ_SEED"]))(run_example)
    run_example()
    return results


@dataclass
class Case:
    """Files, by name below a folder of their own, and the words after `train.py`."""

    files: dict[str, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


# ---- what it begins from ----


@cache
def bases() -> tuple[tuple[str, str, str], ...]:
    """(kind, name, text): files of configs/, YAML examples of documents, and their command lines (kind `words`)."""
    found = [
        (kind, path.stem, path.read_text(encoding="utf-8"))
        for kind in FLAG_OF
        for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))
    ]
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((SHARED / "specs").glob("*.txt"))]
    for document in documents:
        for number, (language, text) in enumerate(blocks(document)):
            if language in ("yaml", "yml"):
                try:
                    example = yaml.safe_dump(filled(text), sort_keys=False)
                except (yaml.YAMLError, AttributeError):
                    continue
                found.append(("training", f"{document.stem}-{number}", example))
            else:
                for line in re.findall(r"python train\.py(.*)", text.replace("\\\n", " ")):
                    line = line.split("#")[0].split("|")[0].split(">")[0]
                    found.append(("words", f"{document.stem}-{number}", line))
    return tuple(found)


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
GOING_ON = (
    "--init_from resume --out_dir out",
    "--training_config out/run.yaml --resume_from_checkpoint auto",
    "--training_config out/run.yaml --resume_from_checkpoint newest",
    "--training_config out/run.yaml --resume_from_checkpoint out/checkpoint-3",
    "--dataset data --init_from prev_run --prev_run_ckpt out",
    "--dataset data --set model_name_or_path=out is_pretrained=true load_optimizer=true",
    "--dataset data --set lora_enable=true lora_weight_path=out/checkpoint-3",
)

# ---- what is put in ----

PLAIN = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e-4, 1e308, float("inf"), float("nan"), 2**31, 2**64, 10**400, "", " ",
    "x", "a\0b", "no", "auto", "none", "1e-4", "0x10", ".", "/", "~nobody", "/dev/zero", "/etc/passwd", "data", "out",
    "out/checkpoint-3", "missing/folder", "file.yaml", "../../../../etc/passwd", "pipe", "a" * 300, "c" * 20000,
    "ünïcödé", "\x1b[31mred\x1b[0m", "a\r\nb", "\u2028", "\ufeff", "%s %d {} {0}", "$(reboot)", "a.b.c",
    "no.such.module", "__main__", "cosine", "SGD", "adamw", "ReduceLROnPlateau", "StepLR", "best", "steps", "epoch",
    "wandb", "all", "eval_loss", "min", "gpt2", "resume", "prev_run", "text", "records", "act", "gpt", "mlp", "(",
    "(a+)+$", "cuda:99", "deepspeed", [], {}, [[]], [None], [1, "a", None], {"name": None}, {"name": []},
    {"name": "SGD"}, {"a": {"b": {"c": {}}}}, {"": 1}, {"a.b": 1}, {1: 2}, {None: 1}, {"name": "act", "hidden_dim": -1},
    [{"name": "LinearLR"}, {"name": "CosineAnnealingLR"}], [0.9, 0.99], [0.9], [0.9, 0.99, 0.999],
    {"monitor": ["a", "a"], "mode": {"b": "min"}}, {"patience": -1}, {"decay": 2}, {"logger_type": "CSVLogger"},
)  # fmt: skip
RAW_TEXTS = (
    "${env:HOME}", "${env:KEEL_NO_SUCH}", "${env:KEEL_NO_SUCH:[1, 2}", "$${env:HOME}", "${package:no_such}",
    "!!python/object/apply:os.system ['touch executed']", "!!int x", "!!set {a, b}", "!!binary aGVsbG8=", "*unknown",
    "&a [*a]", "{<<: {a: 1}}", "{<<: [1]}", "? [a]", "[" * 3000, "{a: " * 2000, "1" * 5000, "1:" * 900 + "1",
    "1e-99999", '"\\0"', '"\\ud800"', "|\n  block", "yes", "0b1", "12:30:45", ".NaN", "=", "- - a",
)  # fmt: skip
SPLICES = (
    b"\t", b"\xef\xbb\xbf", b"\r\n", b"\0", b"\x1b[31m", "\u2028".encode(), b"\xff", b"\xed\xa0\x80", b"---\n",
    b"...\n", b"%YAML 1.1\n---\n", b": ", b"- ", b"? ", b"# ", b"{", b"]", b"'", b'"', b"*a", b"|", b"!", b"@",
    b"<<: *a\n", b"${env:", b"\nmax_steps: 1\n", b"\nextends: base.yaml\n", b"\nextends: gpt\n",
)  # fmt: skip
PARENTS = (
    "base.yaml", "other.yaml", "missing.yaml", "gpt_base", "..", "", "/dev/zero", "pipe", ["other.yaml", "gpt_base"],
    ["base.yaml", None], [[]], 1, "http://example.org/x.yaml", "out/run.yaml", "latin.yaml", "folder.yaml",
)  # fmt: skip
COMMANDS = (["--check"],) * 6 + (["--print_config"], ["--print_config", "json"], ["--check", "--print_config=yaml"])


@cache
def key_paths() -> tuple[str, ...]:
    """Every key there is: ours, those of sections and components, and other systems' words."""
    from loader.schema.alias_flags import alias_paths
    from loader.schema.keys import COMPONENTS, FREE_SECTIONS, OPTIONAL_SECTIONS, component_module, keys_of, shipped
    from loader.sources.key_aliases import ALIASES, yaml_keys

    found = {*yaml_keys(), *ALIASES, *alias_paths()}
    for section, kind in {**FREE_SECTIONS, **OPTIONAL_SECTIONS}.items():
        found |= {f"{section}.{name}" for name in keys_of(kind)}
    for section in COMPONENTS:
        for name in shipped(section):
            found |= {f"{section}.{key}" for key in ["name", *keys_of(component_module(section, name).Config)]}
    return tuple(sorted(found))


@cache
def flags() -> tuple[str, ...]:
    from loader.command_line.parser import argument_parser

    found = set(argument_parser()._option_string_actions) - {"--help", "-h", "--print_schema", "--print-schema"}
    return tuple(sorted(found))


# Each draw has its own lists and mappings: a later mutation changes them.
plain = st.sampled_from(PLAIN).map(copy.deepcopy)
values = st.one_of(plain, plain, st.integers(-5, 5), st.floats(), st.text(max_size=8))


NUMBERS = (0, 1, 2, 3, 10**6, 2**63, 10**308, 0.5, 1e-300, 1.0, 1.5, 1e300)


@cache
def fitting(path: str) -> st.SearchStrategy:
    """Values of the type that a key takes, most of them unreasonable: what is refused later than by its type."""
    from loader.resolve.type_check import members
    from loader.schema.keys import FREE_SECTIONS, OPTIONAL_SECTIONS, keys_of, scalar_keys

    section, _, name = path.rpartition(".")
    keys = keys_of({**FREE_SECTIONS, **OPTIONAL_SECTIONS}[section]) if section in SECTIONS_OF_OURS else scalar_keys()
    kinds = members(keys[name].annotation) if name in keys else ()
    words = [word for kind in kinds for word in getattr(kind, "__args__", ()) if isinstance(word, (str, int))]
    found = [st.sampled_from(words)] if words else []
    found += [st.sampled_from([number for number in NUMBERS if float in kinds or isinstance(number, int)])] * (
        int in kinds or float in kinds
    )
    found += [st.booleans()] * (bool in kinds)
    found += [st.sampled_from([each for each in PLAIN if isinstance(each, str)])] * (str in kinds or not found)
    return st.one_of(found)


SECTIONS_OF_OURS = ("optimizer", "scheduler", "ema", "early_stopping", "checkpointing", "logging")


@st.composite
def cases(draw) -> Case:
    """A real configuration after one to four mutations, and the command that looks at it."""
    kind, _, text = draw(st.sampled_from(bases()))
    if kind == "words":
        case = Case({"base.yaml": b"max_steps: 3\n"}, _words(text))
    elif draw(st.integers(0, 7)) == 0:
        line = draw(st.sampled_from(GOING_ON))
        case = Case({name: each.encode("latin-1") for name, each in EARLIER_RUN.items()}, shlex.split(line))
        case.files["base.yaml"] = b"max_steps: 3\n"
    else:
        case = Case({"base.yaml": text.encode()}, [FLAG_OF[kind], "base.yaml"])
    case.files["other.yaml"] = draw(st.sampled_from([b"seed: 3\n", b"extends: base.yaml\n", b"\xff", b"", b"- 1\n"]))
    for _ in range(draw(st.integers(1, 4))):
        mutation = draw(st.sampled_from(MUTATIONS))
        mutation(draw, case)
    case.words += draw(st.sampled_from(COMMANDS))
    return case


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


# ---- in structure ----


TREE_CHANGES = ("set", "set", "known", "known", "known", "rename", "delete", "move", "wrap", "raw", "extends", "nest")
NAMES = ("", " ", "name", "a.b", "\x1b[0m", "k" * 5000, "ключ", 5)


def mutate_structure(draw, case: Case) -> None:
    """Rename, remove, move or set up to three keys of a file."""
    name = draw(st.sampled_from(sorted(case.files)))
    try:
        tree = yaml.load(case.files[name].decode(), LOADER)
    except Exception:  # PyYAML fails in many ways of its own
        return mutate_text(draw, case)
    tree = tree if isinstance(tree, dict) else {"max_steps": 3}
    raw: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, tree, draw(st.sampled_from(list(_containers(tree)))), raw)
    try:
        text = yaml.dump(tree, Dumper=DUMPER, default_flow_style=draw(st.booleans()), sort_keys=False)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return None
    for number, value in enumerate(raw):
        text = text.replace(RAW.format(number), value)
    case.files[name] = text.encode("utf-8", "surrogatepass")
    return None


def _change(draw, tree: dict, spot: dict | list, raw: list[str]) -> None:
    change, keys = draw(st.sampled_from(TREE_CHANGES)), list(spot) if isinstance(spot, dict) else [*range(len(spot))]
    if change == "extends":
        tree["extends"] = copy.deepcopy(draw(st.sampled_from(PARENTS)))
    elif change == "known":
        _set_known(draw, tree)
    elif keys:
        key = draw(st.sampled_from(keys))
        if change == "set":
            spot[key] = draw(values)
        elif change == "raw":
            raw.append(draw(st.sampled_from(RAW_TEXTS)))
            spot[key] = RAW.format(len(raw) - 1)
        elif change == "delete":
            del spot[key]
        elif change == "wrap":
            spot[key] = draw(st.sampled_from([lambda x: [x], lambda x: {"name": x}, lambda x: [x, x], str]))(spot[key])
        elif change == "nest":
            for _ in range(draw(st.sampled_from([2, 45, 200]))):
                spot[key] = {"a": spot[key]}
        elif change == "move":
            tree[str(key)] = spot.pop(key)
        elif isinstance(spot, dict):
            word = str(key)
            spellings = (word[:-1], word.upper(), word.replace("_", "-"), word[::-1], f"no_{word}", *NAMES)
            spot[draw(st.sampled_from(spellings))] = spot.pop(key)


def _set_known(draw, tree: dict) -> None:
    """A key that exists, in its section or (dots and all) at the top, with a value that fits its type or any."""
    path = draw(st.sampled_from(key_paths()))
    value = draw(fitting(path) if draw(st.booleans()) else values)
    if draw(st.integers(0, 3)) == 0:
        tree[path] = value
        return
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[key] = value


def _containers(value, levels: int = 6):
    """Mappings and lists below a value, itself among them; an alias may lead in a circle."""
    yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, (dict, list)) and levels:
            yield from _containers(child, levels - 1)


# ---- in text ----


def mutate_text(draw, case: Case) -> None:
    """Cut, flip, double or insert bytes of a file, or encode it otherwise."""
    name = draw(st.sampled_from(sorted(case.files)))
    text = case.files[name]
    at = draw(st.integers(0, max(0, len(text) - 1)))
    splice, line = draw(st.sampled_from(SPLICES)), text.rfind(b"\n", 0, at) + 1
    end = text.find(b"\n", at) + 1 or len(text)
    case.files[name] = draw(
        st.sampled_from(
            (
                text[:at],
                *[text[:at] + splice + text[at:]] * 3,
                text[:at] + bytes([255 - byte for byte in text[at : at + 1]]) + text[at + 1 :],
                text[:end] + text[line:end] + text[end:],
                text[:line] + text[end:],
                text[:line] + b"  " + text[line:],
                text.replace(b"\n", b"\r\n"),
                text.replace(b"  ", b"\t"),
                text.decode("utf-8", "replace").encode("utf-16"),
                text + b"\n---\n" + text,
                b"",
            )
        )
    )


# ---- on the command line ----


def mutate_flags(draw, case: Case) -> None:
    """A flag added in one of the ways that people write one, or a word dropped, doubled or moved."""
    change = draw(st.sampled_from(("flag", "flag", "flag", "set", "set", "set", "word", "drop", "double", "shuffle")))
    if change == "flag":
        name, value = draw(st.sampled_from(flags())), _spelled(draw(values))
        written = [[name, value], [f"{name}={value}"], [name], [f"{name}="], [name[:-2], value], [name, value, value],
                   [name.replace("_", "-"), value], [name.replace("--", "-"), value], [f"--no_{name[2:]}"],
                   [f"{name} {value}"]]  # fmt: skip
        case.words += draw(st.sampled_from(written))
    elif change == "set":
        path = draw(st.one_of(st.sampled_from(key_paths()), st.sampled_from(key_paths()), st.sampled_from(ODD_PATHS)))
        value = draw(st.one_of(values.map(_spelled), st.sampled_from(RAW_TEXTS)))
        case.words += ["--set", f"{path}{draw(st.sampled_from(['=', '=', '=', '=', '', '==']))}{value}"]
    elif change == "word":
        case.words.insert(draw(st.integers(0, len(case.words))), draw(st.sampled_from(ODD_WORDS)))
    elif case.words:
        at = draw(st.integers(0, len(case.words) - 1))
        if change == "drop":
            del case.words[at]
        elif change == "double":
            case.words += case.words[at : at + 2]
        else:
            case.words = case.words[at:] + case.words[:at]


ODD_PATHS = (
    "", ".", "a..b", "a b", "model.x.y.z", "extends", "training_config", "a." * 30 + "b", "dataset.name.x",
    "max_steps.x", "hub_token", "callbacks.0", "param_groups[0]", "\x1b", "trainer.x", "k" * 500, "{", "<<",
)  # fmt: skip
ODD_WORDS = (
    "", "-", "--", "-x", "x", "--=", "--no_", "--x=y", "@base.yaml", "-1", "\x1b[0m", "--max_step", "--output_dir",
    "--set", "--check=x", "--ünï", "\udcff", "a\0b", "--print_config=xml", "\n", "--set=a", "=", "a=b",
    "+seed=1", "~x=1",
)  # fmt: skip


def _spelled(value: object) -> str:
    if isinstance(value, (dict, list)):
        return yaml.dump(value, Dumper=DUMPER, default_flow_style=True, width=10**9).strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


MUTATIONS = (mutate_structure,) * 6 + (mutate_text,) * 3 + (mutate_flags,) * 4
