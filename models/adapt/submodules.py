"""What a word in a configuration names inside a model: a part, a module, or what a regular expression finds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

ALIASES = {"vit": "vision_tower"}
PLAIN_WORD = re.compile(r"[\w.\-]+")

# Names that multi-modal models of transformers give to their parts.
VISION_NAMES = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder")
LANGUAGE_NAMES = ("language_model", "text_model")
PROJECTOR_NAMES = ("multi_modal_projector", "mm_projector", "connector", "projector", "aligner")


def parts_of(model: nn.Module, declared: Mapping[str, str] | None) -> dict[str, str]:
    """Part name -> regular expression over module and parameter names: those declared, else derived from the model."""
    if declared:
        return dict(declared)
    if not isinstance(model, PreTrainedModel):
        return {
            name: _inside([name]) for name, child in model.named_children() if any(True for _ in child.parameters())
        }
    return _derived(model)


def _derived(model: PreTrainedModel) -> dict[str, str]:
    """Parts of a transformers model, from the conventions that its classes follow."""
    found: dict[str, list[str]] = {
        "vision_tower": _shallowest(model, VISION_NAMES),
        "llm": _shallowest(model, LANGUAGE_NAMES),
        "projector": _shallowest(model, PROJECTOR_NAMES),
        "embeddings": _names_of(model, model.get_input_embeddings() if _gives_embeddings(model) else None),
    }
    prefix = model.base_model_prefix
    has_base = bool(prefix) and isinstance(getattr(model, prefix, None), nn.Module)
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    outputs = _names_of(model, model.get_output_embeddings())
    if has_base:
        found["backbone"] = [prefix]
        found["head"] = list(dict.fromkeys([*(name for name in children if name != prefix), *outputs]))
    else:
        found["backbone"] = [name for name in children if name not in outputs]
        found["head"] = outputs
    if not found["llm"] and not found["vision_tower"] and outputs:
        found["llm"] = found["backbone"]
    if not found["vision_tower"] and model.main_input_name == "pixel_values":
        found["vision_tower"] = found["backbone"]
    return {part: _inside(names) for part, names in found.items() if names}


def _gives_embeddings(model: PreTrainedModel) -> bool:
    try:
        return model.get_input_embeddings() is not None
    except NotImplementedError:
        return False


def _shallowest(model: nn.Module, wanted: Iterable[str]) -> list[str]:
    """Modules whose own name is one of `wanted`, at the least depth where there is one."""
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in wanted]
    least = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == least]


def _names_of(model: nn.Module, module: nn.Module | None) -> list[str]:
    return [name for name, each in model.named_modules() if each is module and name] if module is not None else []


def _inside(names: Iterable[str]) -> str:
    return rf"^({'|'.join(map(re.escape, names))})(\.|$)"


def all_names(model: nn.Module) -> list[str]:
    """Names of every module and parameter, tied ones under each of their names."""
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name] + [
        name for name, _ in model.named_parameters(remove_duplicate=False)
    ]


def select(model: nn.Module, word: str, parts: Mapping[str, str], key: str) -> list[str]:
    """Names of the modules and parameters that `word` means: first a part, then a module's name, then a regex.

    A module's name may leave out what comes before it (`query` is every module of that name), as in PEFT. Only a word
    with other characters than letters, digits, `_`, `-` and `.` is read as a regular expression: a mistyped part
    must not quietly match something else.

    Raises:
        ValueError: nothing matches; names `key`, the word, the parts there are and the nearest name.
    """
    names = all_names(model)
    part = word if word in parts else ALIASES.get(word, word)
    if part in parts:
        hits = [name for name in names if re.search(parts[part], name)]
    elif PLAIN_WORD.fullmatch(word):
        hits = [name for name in names if name == word or name.endswith(f".{word}")]
    else:
        hits = [name for name in names if _compiled(word, key).search(name)]
    if not hits:
        raise ValueError(nothing_found(word, parts, names, key))
    return hits


def nothing_found(word: str, parts: Mapping[str, str], names: Iterable[str], key: str) -> str:
    """The error for a word that means nothing in this model."""
    known = list(dict.fromkeys([*parts, *(name.rpartition(".")[2] for name in names), *names]))
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"`{key}: {word}` matches nothing in this model; its parts: {', '.join(parts)}{hint}"


def _compiled(word: str, key: str) -> re.Pattern:
    try:
        return re.compile(word)
    except re.error as error:
        raise ValueError(f"`{key}: {word}` is not a regular expression: {error}") from None


def is_inside(name: str, roots: Iterable[str]) -> bool:
    """Whether a module or parameter is one of `roots` or within one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def parameters_in(model: nn.Module, roots: Iterable[str]) -> set[str]:
    """Names of the parameters that `roots` are or hold."""
    roots = set(roots)
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(prefix in roots for prefix in _prefixes(name))
    }


def _prefixes(name: str) -> Iterable[str]:
    pieces = name.split(".")
    return (".".join(pieces[:count]) for count in range(1, len(pieces) + 1))


CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def whole_modules(model: nn.Module, parameters: set[str]) -> tuple[list[str], set[str]]:
    """The largest modules all of whose parameters are in `parameters`, and what no such module holds.

    A container is never one of them: it has no forward that a wrapper could stand in for.
    """
    found: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        inside = parameters_in(model, [name]) if name else set()
        if inside and inside <= parameters and not isinstance(module, CONTAINERS):
            found.append(name)
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found, parameters - parameters_in(model, found)


# ---- names inside a PEFT model ----

PEFT_PREFIX = "base_model.model."
PEFT_PIECES = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")


def base_name(name: str) -> str:
    """What a parameter of a PEFT model is called in the model it was made from."""
    return PEFT_PIECES.sub("", name.removeprefix(PEFT_PREFIX))


def peft_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """The same parts over the parameter names of a PEFT model, where every name has a prefix."""
    anchor = re.compile(r"(?<![\\\[])\^")
    return {
        part: anchor.sub("^" + re.escape(PEFT_PREFIX).replace("\\", "\\\\"), regex) for part, regex in parts.items()
    }
