"""What the installed packages accept, read from their source, as importing torch or transformers costs seconds.

The fields of `transformers.TrainingArguments` with types, defaults and help texts; the names of optimizers, schedules
and reporting backends, with the options of their constructors; versions.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from loader.errors import ConfigError

# Where the enumerations that annotate those fields are defined.
ENUM_FILES = ("training_args.py", "trainer_utils.py", "debug_utils.py")
REQUIRED = MISSING  # the default of a field that has none


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
    """Return the folder of the installed transformers without importing it."""
    folder = _folder("transformers")
    if folder is None:
        raise ConfigError("transformers is not installed: run `make install`, or pip install -e .")
    return folder


def _class_body(source: str, name: str) -> list[ast.stmt]:
    """Parse only the fields of a class: the whole file of 3,000 lines would take most of `--check`'s time."""
    start = source.index(f"\nclass {name}") + 1
    end = source.find("\n    def ", start)
    return ast.parse(source[start:end]).body[0].body


def _default_and_help(value: ast.expr | None) -> tuple[Any, str]:
    if value is None:
        return REQUIRED, ""
    if not isinstance(value, ast.Call):
        return _literal(value), ""
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    factory = keywords.get("default_factory")
    default = {"list": [], "dict": {}}.get(factory.id) if isinstance(factory, ast.Name) else None
    default = _literal(keywords["default"]) if "default" in keywords else default
    metadata = keywords.get("metadata")
    text = ""
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                text = _literal(value) or ""
    return default, " ".join(text.split()) if isinstance(text, str) else ""


def _literal(value: ast.expr) -> Any:
    """Return the value of a constant expression; None if it is computed at run time."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


@cache
def _enums(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of every string enumeration in ENUM_FILES by its name."""
    enums = {}
    for file in ENUM_FILES:
        source = (folder / file).read_text(encoding="utf-8")
        position = source.find("(ExplicitEnum):")
        while position >= 0:
            start = source.rindex("class ", 0, position)
            end = source.find("\n\n\n", position)
            name = source[start + 6 : position]
            body = ast.parse(source[start : end if end > 0 else None]).body[0].body
            enums[name] = tuple(
                member.value.value
                for member in body
                if isinstance(member, ast.Assign) and isinstance(member.value, ast.Constant)
            )
            position = source.find("(ExplicitEnum):", position + 1)
    return enums


def _annotation(node: ast.expr, folder: Path) -> Any:
    """Convert an annotation to a type that pydantic understands; unknown names become Any."""
    text = ast.unparse(node)
    names: dict[str, Any] = {"Any": Any, "Literal": Literal, "Union": Union, "Optional": Union}
    enums = _enums(folder)
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and child.id in enums:
            # `SchedulerType | str` means «one of these words»: the bare str would let any word through.
            text = text.replace(f"{child.id} | str", child.id)
            names[child.id] = Literal[enums[child.id]]
        elif isinstance(child, ast.Name) and child.id not in {*names, *_BUILTINS, "None"}:
            names[child.id] = Any
    try:
        return eval(text, {"__builtins__": {}}, {**_BUILTINS, **names})
    except Exception:  # an annotation written in a way this reader does not know: TrainingArguments checks the value
        return Any


_BUILTINS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "tuple": tuple}


# Reporting backends whose package has another name, or that need none.
BACKEND_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": None}
NOT_OPTIMIZERS = {"Optimizer", "lr_scheduler", "swa_utils", "swap_in_optimizer_params_and_state"}
# The base class, and two that take a function, which YAML cannot write.
NOT_SCHEDULERS = {"LRScheduler", "LambdaLR", "MultiplicativeLR"}


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
def constructor_options(name: str) -> tuple[str, ...] | None:
    """Names of the options that a class of torch.optim or torch.optim.lr_scheduler takes; None for any other name.

    Options of other packages' classes are checked by their constructors when the run starts.
    """
    if name in torch_schedulers():
        parameters = _parameters(_source("torch", "optim/lr_scheduler.py"), name)
        return tuple(parameter for parameter in parameters if parameter not in ("optimizer", "last_epoch"))
    if name not in torch_optimizers():
        return None
    imports = _source("torch", "optim/__init__.py")
    module = re.search(rf"^from torch\.optim\.(\w+) import .*\b{name}\b", imports, re.MULTILINE)
    options = _parameters(_source("torch", f"optim/{module[1]}.py"), name)[1:]  # the first is what to train
    # Muon is paired with AdamW, which takes the options that Muon does not know.
    return tuple(dict.fromkeys((*options, *constructor_options("AdamW")))) if name == "Muon" else options


def _parameters(source: str, name: str) -> tuple[str, ...]:
    """Parameters of a class's `__init__`, or of its base's, without `self`.

    Only the class is parsed: whole files cost 50 ms and more.
    """
    start = re.search(rf"^class {name}\b", source, re.MULTILINE).start()
    end = re.compile(r"\n(?=[^\s)#])").search(source, start)
    made = ast.parse(source[start : end.start() if end else None]).body[0]
    for statement in made.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            parameters = (*statement.args.posonlyargs, *statement.args.args, *statement.args.kwonlyargs)
            return tuple(parameter.arg for parameter in parameters[1:])
    return _parameters(source, made.bases[0].id)


def _listed(package: str, path: str) -> tuple[str, ...]:
    """Return the `__all__` of a module of an installed package; empty if the package is not installed."""
    listed = re.search(r"^__all__ = (\[.*?\])", _source(package, path), re.DOTALL | re.MULTILINE)
    return tuple(ast.literal_eval(listed[1])) if listed else ()


@cache
def _source(package: str, path: str) -> str:
    folder = _folder(package)
    file = folder / path if folder else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


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


# Package -> the oldest release that is supported and the first that is not, as in setup.cfg.
SUPPORTED = {"torch": ("2.10", None), "transformers": ("5.17", "6")}


def check_versions() -> None:
    """Refuse versions of packages that are too old or too new, before they are imported.

    Raises:
        ConfigError: one line for each, with the installed version and how to install another.
    """
    from packaging.version import InvalidVersion, Version

    problems = []
    for package, (oldest, too_new) in SUPPORTED.items():
        version, wanted = installed_version(package), f">={oldest}" + (f",<{too_new}" if too_new else "")
        try:  # a pre-release counts as its release
            release = Version(Version(version or "0").base_version)
        except InvalidVersion:  # a local build
            continue
        if release < Version(oldest) or (too_new is not None and release >= Version(too_new)):
            state = "is not installed" if version is None else f"{version} is not supported"
            problems.append(f"{package} {state}; Keel needs {wanted}: pip install '{package}{wanted}'")
    if problems:
        raise ConfigError(problems)


@cache
def installed_version(package: str) -> str | None:
    """Return a package's version, `2.13.0+cpu`; None if it is not installed."""
    from importlib import metadata  # it imports email, socket and zipfile

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
