"""Select submodules and parameters of a model by a word of the configuration: a part, a name or a regex."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from storage.suggestions import did_you_mean

ALIASES = {"vit": "vision_tower", "merger": "projector"}
PLAIN_WORD = re.compile(r"[\w.\-]+")

# Names that multi-modal models of transformers give to their parts.
VISION_NAMES = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder")
LANGUAGE_NAMES = ("language_model", "text_model")
PROJECTOR_NAMES = (
    "multi_modal_projector",
    "mm_projector",
    "connector",
    "projector",
    "aligner",
    "merger",
    "deepstack_merger_list",
)


def parts_of(model: nn.Module, declared: Mapping[str, str] | None) -> dict[str, str]:
    """Return part name -> regular expression over module and parameter names, as declared or derived from the model."""
    if declared:
        return dict(declared)
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    if not isinstance(model, PreTrainedModel):
        return {name: _pattern([name]) for name in children}
    outputs = _names_of(model, model.get_output_embeddings())
    prefix = model.base_model_prefix
    if prefix and isinstance(getattr(model, prefix, None), nn.Module):
        backbone, head = [prefix], [*(name for name in children if name != prefix), *outputs]
    else:
        backbone, head = [name for name in children if name not in outputs], outputs
    vision, language = _shallowest(model, VISION_NAMES), _shallowest(model, LANGUAGE_NAMES)
    if outputs and not vision:
        language = language or backbone
    if model.main_input_name == "pixel_values":
        vision = vision or backbone
    projector = _shallowest(model, PROJECTOR_NAMES)
    parts = {
        "vision_tower": [name for root in vision for name in _outside(model, root, projector)],
        "llm": language,
        "projector": projector,
        "embeddings": _input_embeddings(model),
        "backbone": backbone,
        "head": list(dict.fromkeys(head)),
    }
    return {part: _pattern(names) for part, names in parts.items() if names}


def _input_embeddings(model: PreTrainedModel) -> list[str]:
    try:
        return _names_of(model, model.get_input_embeddings())
    except NotImplementedError:  # transformers' answer for a model without any
        return []


def _shallowest(model: nn.Module, wanted: Collection[str]) -> list[str]:
    """Return the modules whose last name is one of `wanted`, only those at the smallest depth."""
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in wanted]
    depth = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == depth]


def _outside(model: nn.Module, root: str, excluded: Collection[str]) -> list[str]:
    """Return the largest modules and parameters in `root` outside `excluded`: Qwen's projector is in its ViT."""
    if root in excluded:
        return []
    if not any(name.startswith(f"{root}.") for name in excluded):
        return [root]
    module = model.get_submodule(root)
    own = [f"{root}.{name}" for name, _ in module.named_parameters(recurse=False)]
    children = [f"{root}.{name}" for name, _ in module.named_children()]
    return [*own, *(name for child in children for name in _outside(model, child, excluded))]


def _names_of(model: nn.Module, module: nn.Module | None) -> list[str]:
    return [name for name, child in model.named_modules() if child is module and name]


def _pattern(names: Iterable[str]) -> str:
    return rf"^({'|'.join(map(re.escape, names))})(\.|$)"


def all_names(model: nn.Module) -> list[str]:
    """Return the names of every module and parameter; tied ones under each of their names."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    return modules + [name for name, _ in model.named_parameters(remove_duplicate=False)]


def part_named(word: str, parts: Mapping[str, str]) -> str | None:
    """Return the part that `word` names, by its name or an alias."""
    part = word if word in parts else ALIASES.get(word)
    return part if part in parts else None


def names_in_part(model: nn.Module, part: str, parts: Mapping[str, str]) -> list[str]:
    """Return the modules and parameters of a part; none if the model has no such part."""
    return [name for name in all_names(model) if part in parts and re.search(parts[part], name)]


def select(model: nn.Module, word: str, parts: Mapping[str, str], key: str) -> list[str]:
    """Return the names of the modules and parameters that `word` selects: as a part, else a name, else a regex.

    As in PEFT, a name may omit its beginning: `query` selects every module of that name. Only a word with other
    characters than letters, digits, `_`, `-` and `.` is read as a regular expression, so that a mistyped part does not
    silently match something else.

    Raises:
        ValueError: nothing matches; the error has the key, the word, the model's parts and the nearest name.
    """
    names, part = all_names(model), part_named(word, parts)
    if part is not None:
        selected = names_in_part(model, part, parts)
    elif PLAIN_WORD.fullmatch(word):
        selected = [name for name in names if name == word or name.endswith(f".{word}")]
    else:
        try:
            pattern = re.compile(word)
        except re.error as error:
            raise ValueError(f"`{key}: {word}` is not a regular expression: {error}") from None
        selected = [name for name in names if pattern.search(name)]
    if not selected:
        known = dict.fromkeys([*parts, *(name.rpartition(".")[2] for name in names), *names])
        raise ValueError(
            f"`{key}: {word}` matches nothing in this model; its parts: {', '.join(parts)}{did_you_mean(word, known)}"
        )
    return selected


def is_inside(name: str, roots: Collection[str]) -> bool:
    """Return whether a module or parameter is one of `roots` or inside one."""
    pieces = name.split(".")
    return any(".".join(pieces[:count]) in roots for count in range(1, len(pieces) + 1))


def parameters_in(model: nn.Module, roots: Iterable[str]) -> set[str]:
    """Return the names of the parameters that are one of `roots` or inside one."""
    roots = set(roots)
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if is_inside(name, roots)}


def tied_parameters(model: nn.Module) -> set[str]:
    """Return the names of parameters that have more than one name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def whole_modules(model: nn.Module, parameters: set[str]) -> tuple[list[str], set[str]]:
    """Return the largest modules all of whose parameters are in `parameters`, and the parameters that none contains.

    A container is never one of them: it has no forward that a wrapper could replace.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    complete = _ancestors(names & parameters) - _ancestors(names - parameters)
    whole: list[str] = []
    for name, module in model.named_modules():  # a module comes before those inside it
        if name in complete and not isinstance(module, CONTAINERS) and not is_inside(name, whole):
            whole.append(name)
    return whole, parameters - parameters_in(model, whole)


def _ancestors(names: Iterable[str]) -> set[str]:
    """Return the names of the modules that a parameter is inside, without the model itself."""
    pieces = [name.split(".") for name in names]
    return {".".join(parts[:count]) for parts in pieces for count in range(1, len(parts))}


# ---- names inside a PEFT model ----

PEFT_PREFIX = "base_model.model."
PEFT_PIECES = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")


def base_name(name: str) -> str:
    """Return the name that a module or parameter of a PEFT model has in the model that PEFT wraps."""
    return PEFT_PIECES.sub("", name.removeprefix(PEFT_PREFIX))


def peft_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the same parts as regular expressions over the names of a PEFT model, which have a prefix."""
    anchor = re.compile(r"(?<![\\\[])\^")
    return {part: anchor.sub(lambda _: "^" + re.escape(PEFT_PREFIX), regex) for part, regex in parts.items()}
