"""Complete the command line of train.py in a shell: flags, their values, named files, and keys as bare words.

`--completion bash` prints a script which calls `train.py --complete LINE` at each press of the tab key. Then train.py
imports only this module, and the parser is built only for a flag.
"""

from __future__ import annotations

import shlex
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from loader.command_line.parser import argument_parser
from loader.schema.keys import (
    COMPONENTS,
    FREE_SECTIONS,
    LIST_SECTIONS,
    OPTIONAL_SECTIONS,
    ROOT,
    component_module,
    keys_of,
    scalar_keys,
    shipped,
)

# Flag -> the folder of configs/ whose files it takes by name.
NAMED_FILES = {"task_name": "task", "training_config": "training", "model_config": "model", "policy": "model"}

BASH = r"""# bash: eval "$(keel-train --completion bash)", or the same with python train.py
_keel_train() {
    local line="${COMP_LINE:0:COMP_POINT}" program=(keel-train) index word
    if [[ "${COMP_WORDS[0]##*/}" == python* ]]; then
        program=()
        for ((index = 0; index < COMP_CWORD; index++)); do
            program+=("${COMP_WORDS[index]}")
            [[ "${COMP_WORDS[index]##*/}" == train.py ]] && break
        done
        [[ "${program[-1]##*/}" == train.py ]] || return
    fi
    COMPREPLY=()
    while IFS= read -r word; do
        # bash divides words at "=", and of key=value wants the value alone
        [[ "$COMP_WORDBREAKS" == *=* && "${line##* }" == *=* ]] && word="${word#*=}"
        COMPREPLY+=("$word")
    done < <("${program[@]}" --complete "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
}
complete -o default -F _keel_train keel-train python python3
"""

ZSH = r"""# zsh: eval "$(keel-train --completion zsh)", after compinit
_keel_train() {
    local -a program=(keel-train) found
    if [[ ${words[1]:t} == python* ]]; then
        local index=${words[(i)*train.py]}
        (( index < CURRENT )) || { _files; return }
        program=(${words[1,index]})
    fi
    found=("${(@f)$($program --complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    [[ -n "$found" ]] || { _files; return }
    compadd -S '' -- ${(M)found:#*[=.]}
    compadd -- ${found:#*[=.]}
}
compdef _keel_train keel-train python python3
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}


def complete(words: list[str]) -> int:
    """Print what the last one of the words may become, one a line; returns the exit code."""
    print("\n".join(completions(" ".join(words))))
    return 0


def completions(line: str) -> list[str]:
    """What the last word of a command line may become; a line that ends in a space has an empty last word."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    current = words.pop() if words and not line[-1:].isspace() else ""
    before = _flags().get(words[-1]) if words and words[-1].startswith("-") else None
    if current.startswith("-"):
        found: Iterable[str] = [name for name in _flags() if name.startswith("--") and "-" not in name[2:]]
    elif before is not None and before.dest != "set" and not isinstance(before.nargs, int):
        found = _values_of_flag(before)
    else:
        found = _settings(current, words)
    return sorted(word for word in set(found) if word.startswith(current))


def _flags() -> dict[str, Any]:
    return argument_parser()._option_string_actions


def _values_of_flag(action: Any) -> list[str]:
    if action.dest in NAMED_FILES:
        return named_files(NAMED_FILES[action.dest])
    return [str(choice) for choice in action.choices or ()]


def named_files(kind: str) -> list[str]:
    """Names of the files in configs/KIND, of the working folder and of Keel."""
    return [path.stem for folder in (Path(), ROOT) for path in (folder / "configs" / kind).glob("*.yaml")]


def _settings(current: str, words: list[str]) -> list[str]:
    """Keys with the values that they may have, in the form `key=value`."""
    key, equals, _ = current.partition("=")
    section, dot, name = key.partition(".")
    sections = (*COMPONENTS, *FREE_SECTIONS, *OPTIONAL_SECTIONS, *LIST_SECTIONS)
    if not dot and not equals:
        groups = [f"{kind.name}=" for kind in (ROOT / "configs").iterdir() if kind.is_dir() and kind.name in sections]
        return [*(f"{key}=" for key in scalar_keys()), *(f"{name}." for name in sections), *groups]
    if not dot:
        return [f"{key}={value}" for value in (_choices(scalar_keys().get(key)) or named_files(key))]
    keys = _keys_of_section(section, words)
    if not equals:
        return [f"{section}.{each}=" for each in keys]
    values = shipped(section) if section in COMPONENTS and name == "name" else _choices(keys.get(name))
    return [f"{key}={value}" for value in values]


def _keys_of_section(section: str, words: list[str]) -> dict[str, Any]:
    """Keys of a section; of a component those that the line names, or else all."""
    if section not in COMPONENTS:
        kind = {**FREE_SECTIONS, **OPTIONAL_SECTIONS}.get(section)
        return keys_of(kind) if kind is not None else {}
    known, flags = shipped(section), ("--model_config", "--policy")
    chosen = [word.partition("=")[2] for word in words if word.startswith((f"{section}=", f"{section}.name="))]
    chosen += [word for flag, word in zip(words, words[1:], strict=False) if section == "model" and flag in flags]
    found: dict[str, Any] = {"name": None}
    for name in [name for name in chosen if name in known] or known:
        found |= keys_of(component_module(section, name).Config)
    return found


def _choices(key: Any) -> list[str]:
    """The values of a key that has few: true and false, or those of a Literal."""
    if key is None:
        return []
    kinds = typing.get_args(key.annotation) if isinstance(key.annotation, types.UnionType) else (key.annotation,)
    found = ["true", "false"] if bool in kinds else []
    return found + [
        str(value) for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)
    ]
