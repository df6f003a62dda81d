"""What the installed packages offer, read from their source: importing torch or transformers to ask costs seconds.

The fields of `transformers.TrainingArguments` with types, defaults and help texts; the names of optimizers, schedules
and reporting backends, with the options of their constructors; versions.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Union

from loader.errors import ConfigError

# Where the enumerations that annotate those fields are defined.
ENUM_FILES = ("training_args.py", "trainer_utils.py", "debug_utils.py")
REQUIRED = object()


@dataclass(frozen=True)
class TrainerField:
    """One field: its Python type (enumerations as a Literal of their values), default and help text."""

    name: str
    annotation: Any
    default: Any
    help: str


@cache
def trainer_fields() -> dict[str, TrainerField]:
    """Name -> field, in the order of the installed version's source."""
    folder = transformers_folder()
    source = (folder / "training_args.py").read_text(encoding="utf-8")
    fields = {}
    for statement in _class_body(source, "TrainingArguments"):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if name.startswith("_") or "ClassVar" in ast.unparse(statement.annotation):
                continue
            default, text = _default_and_help(statement.value)
            fields[name] = TrainerField(name, _annotation(statement.annotation, folder), default, text)
    return fields


def transformers_folder() -> Path:
    """Where the installed transformers lies, found without importing it."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("transformers is not installed: run `make install`, or pip install -e .")
    return Path(found.submodule_search_locations[0])


def _class_body(source: str, name: str) -> list[ast.stmt]:
    """The class's field section only: parsing the whole 3,000-line file would cost most of `--check`'s time."""
    start = source.index(f"\nclass {name}") + 1
    end = source.find("\n    def ", start)
    return ast.parse(source[start:end]).body[0].body


def _default_and_help(value: ast.expr | None) -> tuple[Any, str]:
    if value is None:
        return REQUIRED, ""
    if not isinstance(value, ast.Call):
        return _literal(value), ""
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    default = _literal(keywords["default"]) if "default" in keywords else _factory(keywords.get("default_factory"))
    metadata = keywords.get("metadata")
    text = ""
    if isinstance(metadata, ast.Dict):
        for key, each in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                text = _literal(each) or ""
    return default, " ".join(text.split()) if isinstance(text, str) else ""


def _factory(value: ast.expr | None) -> Any:
    return {"list": [], "dict": {}}.get(value.id) if isinstance(value, ast.Name) else None


def _literal(value: ast.expr) -> Any:
    """The value of a constant expression; None where it is computed at run time."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


@cache
def _enums(folder: Path) -> dict[str, tuple[str, ...]]:
    """Enumeration name -> its values, for every string enumeration in ENUM_FILES."""
    found = {}
    for file in ENUM_FILES:
        source = (folder / file).read_text(encoding="utf-8")
        position = source.find("(ExplicitEnum):")
        while position >= 0:
            start = source.rindex("class ", 0, position)
            end = source.find("\n\n\n", position)
            name = source[start + 6 : position]
            body = ast.parse(source[start : end if end > 0 else None]).body[0].body
            found[name] = tuple(
                each.value.value
                for each in body
                if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
            )
            position = source.find("(ExplicitEnum):", position + 1)
    return found


def _annotation(node: ast.expr, folder: Path) -> Any:
    """The annotation as a type pydantic understands; names it cannot know become Any."""
    text = ast.unparse(node)
    names: dict[str, Any] = {"Any": Any, "Literal": Literal, "Union": Union, "Optional": Union}
    enums = _enums(folder)
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and child.id in enums:
            # `SchedulerType | str` means «one of these words»: the bare str would let any word through.
            text = text.replace(f"{child.id} | str", child.id)
            names[child.id] = Literal[enums[child.id]]
        elif isinstance(child, ast.Name) and child.id not in names and child.id not in _known_names():
            names[child.id] = Any
    try:
        return eval(text, {"__builtins__": {}}, {**_BUILTINS, **names})
    except Exception:  # an annotation written in a way this reader does not know: TrainingArguments checks the value
        return Any


_BUILTINS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "tuple": tuple}


def _known_names() -> set[str]:
    return set(_BUILTINS) | {"None"}


# Reporting backends whose package has another name, or that need none.
BACKEND_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": None}
NOT_OPTIMIZERS = {"Optimizer", "lr_scheduler", "swa_utils", "swap_in_optimizer_params_and_state"}
# The base class, and two that take a function, which YAML cannot write.
NOT_SCHEDULERS = {"LRScheduler", "LambdaLR", "MultiplicativeLR"}
# Arguments that a schedule is given, not asked for.
GIVEN = {"optimizer", "last_epoch", "num_warmup_steps", "num_training_steps"}


@cache
def torch_optimizers() -> tuple[str, ...]:
    """Names of the optimizer classes in the installed torch.optim; empty where torch is not found."""
    return tuple(name for name in _listed("torch", "optim/__init__.py") if name not in NOT_OPTIMIZERS)


@cache
def torch_schedulers() -> tuple[str, ...]:
    """Names of the classes in the installed torch.optim.lr_scheduler that YAML can describe."""
    return tuple(name for name in _listed("torch", "optim/lr_scheduler.py") if name not in NOT_SCHEDULERS)


@cache
def pytorch_optimizers() -> tuple[str, ...]:
    """Names of the classes in the package pytorch-optimizer; empty where it is not installed."""
    path = "optimizer/__init__.py"
    # Besides the classes, functions are listed, in lower case; some classes are only in its table of names.
    table = re.search(r"^OPTIMIZER_LIST\b.*?= \[(.*?)^\]", _source("pytorch_optimizer", path), re.DOTALL | re.MULTILINE)
    names = [*_listed("pytorch_optimizer", path), *(re.findall(r"\w+", table[1]) if table else ())]
    return tuple(dict.fromkeys(name for name in names if not name.islower() and "_" not in name))


@cache
def constructor_options(kind: Literal["optimizer", "scheduler"], name: str) -> tuple[str, ...] | None:
    """Names of the options that an optimizer or schedule takes besides what it acts on; None where it is not known.

    Optimizers: classes of torch.optim and of pytorch-optimizer, the latter in lower case too; the names of
    TrainingArguments stand for several packages' classes and are not known. Schedules: classes of
    torch.optim.lr_scheduler, and transformers' names.
    """
    function = _schedule_function(name) if kind == "scheduler" else _optimizer_constructor(name)
    if function is None:
        return None
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    if function.name == "__init__":
        names = names[1:]
    if kind == "scheduler":
        return tuple(each for each in names if each not in GIVEN)
    own = names[1:]  # the first is what to train
    if name == "Muon":  # paired with AdamW, which takes the options that Muon does not know
        own += [
            constructor_option
            for constructor_option in constructor_options("optimizer", "AdamW") or ()
            if constructor_option not in own
        ]
    return tuple(own)


def _class_name(name: str) -> str:
    """The class that an optimizer's name stands for: itself, or the package's class of that name in lower case."""
    if name in torch_optimizers() or name in pytorch_optimizers():
        return name
    return next(
        (pytorch_optimizer for pytorch_optimizer in pytorch_optimizers() if pytorch_optimizer.lower() == name), name
    )


def _optimizer_constructor(name: str) -> ast.FunctionDef | None:
    """The `__init__` behind an optimizer's name, in the order in which the trainer looks the name up."""
    if name in torch_optimizers():
        return _constructor(_torch_optimizer_source(name), name)
    name = _class_name(name)
    if name not in pytorch_optimizers():
        return None
    found = _folder("pytorch_optimizer") / "optimizer"
    imports = _source("pytorch_optimizer", "optimizer/__init__.py")
    for module, names in re.findall(
        r"^from pytorch_optimizer\.optimizer\.([\w.]+) import (\([^)]*\)|.*)$", imports, re.M
    ):
        if re.search(rf"\b{name}\b", names):
            path = found / module.replace(".", "/")
            files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            sources = [file.read_text(encoding="utf-8") for file in files]
            return next((made for text in sources if (made := _constructor(text, name, sources))), None)
    # The package also lists some of torch's own.
    return _constructor(_torch_optimizer_source(name), name) if name in torch_optimizers() else None


def _torch_optimizer_source(name: str) -> str:
    imports = _source("torch", "optim/__init__.py")
    module = re.search(rf"^from torch\.optim\.(\w+) import .*\b{name}\b", imports, re.MULTILINE)
    return _source("torch", f"optim/{module[1]}.py") if module else ""


def _schedule_function(name: str) -> ast.FunctionDef | None:
    if name == "reduce_lr_on_plateau":
        name = "ReduceLROnPlateau"
    if name in torch_schedulers():
        return _constructor(_source("torch", "optim/lr_scheduler.py"), name)
    source = (transformers_folder() / "optimization.py").read_text(encoding="utf-8")
    if name == "greedy":
        return _constructor(source, "GreedyLR")
    words = (transformers_folder() / "trainer_utils.py").read_text(encoding="utf-8")
    member = re.search(rf'^    (\w+) = "{re.escape(name)}"$', words[words.index("class SchedulerType") :], re.MULTILINE)
    function = re.search(rf"SchedulerType\.{member[1]}: (\w+)," if member else "$^", source)
    return _definition(source, f"def {function[1]}(") if function else None


def _constructor(source: str, name: str, others: Sequence[str] = ()) -> ast.FunctionDef | None:
    """The `__init__` of a class in this source, or of its first base in this or the other sources."""
    made = _definition(source, f"class {name}(") or _definition(source, f"class {name}:")
    if made is None:
        return None
    for statement in made.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return statement
    base = made.bases[0].id if made.bases and isinstance(made.bases[0], ast.Name) else ""
    return next((found for text in (source, *others) if base and (found := _constructor(text, base))), None)


def _definition(source: str, start: str) -> Any:
    """The class or function that begins with this text; only it is parsed, for whole files cost 50 ms and more."""
    position = f"\n{source}".find(f"\n{start}")
    if position < 0:
        return None
    end = re.compile(r"\n(?=[^\s)#])").search(source, position + len(start))
    return ast.parse(source[position : end.start() if end else None]).body[0]


def _listed(package: str, path: str) -> tuple[str, ...]:
    """The `__all__` of a module of an installed package; empty where the package is not found."""
    listed = re.search(r"^__all__ = (\[.*?\])", _source(package, path), re.DOTALL | re.MULTILINE)
    return tuple(ast.literal_eval(listed[1])) if listed else ()


@cache
def _source(package: str, path: str) -> str:
    folder = _folder(package)
    file = folder / path if folder else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def _folder(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


@cache
def reporting_backends() -> tuple[str, ...]:
    """Names that `report_to` takes in the installed transformers."""
    source = (transformers_folder() / "integrations" / "integration_utils.py").read_text(encoding="utf-8")
    table = re.search(r"^INTEGRATION_TO_CALLBACK = \{(.*?)\}", source, re.DOTALL | re.MULTILINE)
    return tuple(re.findall(r'"(\w+)":', table[1])) if table else ()


def backend_is_installed(name: str) -> bool:
    """Whether the package that a reporting backend needs can be found."""
    package = BACKEND_PACKAGES.get(name, name)
    return package is None or importlib.util.find_spec(package) is not None


# Package -> (oldest release that will do, first that will not), as in setup.cfg.
SUPPORTED = {"torch": ((2, 10), None), "transformers": ((5, 17), (6,))}
RELEASE = re.compile(r"(?:\d+!)?(\d+(?:\.\d+)*)")


def check_versions() -> None:
    """Refuses packages that are too old or too new, before anything imports them.

    Raises:
        ConfigError: one line for each, with the version that is there and how to get one that will do.
    """
    problems = []
    for package, (oldest, too_new) in SUPPORTED.items():
        wanted = f"{package}>={_text(oldest)}" + (f",<{_text(too_new)}" if too_new else "")
        install = f"pip install '{wanted}'"
        version = installed_version(package)
        if version is None:
            problems.append(f"{package} is not installed: {install}")
            continue
        release = _release(version)
        if release is None:
            continue  # a build of one's own, which is trusted to know better
        if release < oldest:
            problems.append(f"{package} {version} is too old, Keel needs {_text(oldest)} or newer: {install}")
        elif too_new is not None and release >= too_new:
            problems.append(f"{package} {version} is too new, Keel knows releases below {_text(too_new)}: {install}")
    if problems:
        raise ConfigError(problems)


@cache
def installed_version(package: str) -> str | None:
    """A package's version, `2.13.0+cpu`; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...] | None:
    """`2.13.0a0+cpu` -> (2, 13, 0): a pre-release has what its release has. None: no number is in it."""
    found = RELEASE.match(version or "")
    return tuple(map(int, found[1].split("."))) if found else None


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
