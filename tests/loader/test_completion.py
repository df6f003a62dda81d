"""Completion in a real bash: what the tab key offers at the end of a command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loader.command_line.completion import BASH, completions
from loader.schema.installed import trainer_fields

ROOT = Path(__file__).resolve().parents[2]


def names(kind):
    return sorted(path.stem for path in (ROOT / "configs" / kind).glob("*.yaml"))


@pytest.mark.parametrize("kind, flag", [("task", "task_name"), ("training", "training_config"), ("model", "policy")])
def test_files_by_name(kind, flag, in_root):
    assert completions(f"keel-train --{flag} ") == names(kind)


def test_files_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "configs/task").mkdir(parents=True)
    (tmp_path / "configs/task/mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("keel-train --task_name mi") == ["mine"]


def test_flags_and_their_values():
    assert completions("keel-train --learning_rate 1 --per_device") == [
        "--per_device_eval_batch_size", "--per_device_train_batch_size",
    ]  # fmt: skip
    assert "--no_do_eval" in completions("keel-train --no_")
    assert completions("keel-train --print_config ") == ["json", "yaml"]
    assert completions("keel-train --output_dir ") == []  # the shell offers files


@pytest.mark.parametrize("before", ["keel-train ", "keel-train --set ", "keel-train seed=1 --set lr=2 "])
def test_keys_of_all_kinds(before):
    assert completions(before + "lora_al") == ["lora_alpha="]
    assert completions(before + "early_stopping.pa") == ["early_stopping.patience="]
    assert f"{next(name for name in trainer_fields() if name.startswith('torch_compile_'))}=" in completions(
        before + "torch_compile_"
    )
    assert {"model.", "model="} <= set(completions(before + "mod"))


def test_keys_of_the_chosen_component():
    act = set(yaml.safe_load((ROOT / "configs/model/act.yaml").read_text())["model"])
    offered = {word.removeprefix("model.").removesuffix("=") for word in completions("keel-train model=act model.")}
    assert act <= offered and "n_layer" not in offered
    assert "model.n_layer=" in completions("keel-train model=act --model_config gpt model.")
    assert "model.n_layer=" in completions("keel-train model.")  # none is chosen: of all


def test_values_of_keys():
    assert completions("keel-train use_cpu=") == ["use_cpu=false", "use_cpu=true"]
    assert completions("keel-train quant_type=n") == ["quant_type=nf4"]
    assert completions("keel-train optimizer=adaf") == ["optimizer=adafactor"]
    assert completions("keel-train model.name=gp") == ["model.name=gpt"]


def bash(line, *words, cwd=ROOT):
    """What bash offers: the function of the script, called as readline does."""
    code = f"""{BASH}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({" ".join(map(repr, words))})
COMP_CWORD=$(({len(words)} - 1))
compopt() {{ echo "compopt $*"; }}
_keel_train
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.stderr == "", done.stderr
    return done.stdout.split("\n")[:-1]


def test_bash_with_the_script():
    start, words = f"{sys.executable} train.py", (sys.executable, "train.py")
    assert bash(f"{start} --task_name fashion_mo", *words, "--task_name", "fashion_mo") == ["fashion_mosaics"]
    # bash divides `quant_type=n` into three words
    assert bash(f"{start} quant_type=n", *words, "quant_type", "=", "n") == ["nf4"]
    assert bash(f"{start} lora_al", *words, "lora_al") == ["compopt -o nospace", "lora_alpha="]
    assert bash(f"{sys.executable} other.py --task", sys.executable, "other.py", "--task") == [""]


def test_the_flag_prints_the_script():
    done = subprocess.run(
        [sys.executable, "train.py", "--completion", "bash"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, BASH)


def test_completion_imports_no_torch():
    code = "import sys; from loader.command_line.entry import command_line, run_config\n"
    code += "try: run_config(['--complete', 'keel-train model.'])\nexcept SystemExit as end: assert not end.code\n"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
