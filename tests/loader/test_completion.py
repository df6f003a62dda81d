"""Completion in a real bash: what the tab key offers at the end of a command line."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loader.command_line.completion import BASH, ZSH, completions
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


@pytest.mark.slow
def test_the_flag_prints_the_script():
    done = subprocess.run(
        [sys.executable, "train.py", "--completion", "bash"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, BASH)


@pytest.mark.slow
def test_an_answer_takes_less_than_0_3_s():
    """Of the processor: the least of several, as other programs slow it down."""
    for line in ("keel-train --task_name m", "keel-train lora_", "keel-train model=act model."):
        spent = []
        for _ in range(8):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "train.py", "--complete", line], cwd=ROOT, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert done.stdout and not done.stderr
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            if spent[-1] < 0.3:
                break
        assert min(spent) < 0.3, f"{line}: {spent}"


@pytest.mark.slow
def test_completion_imports_little():
    """Of what costs time: no torch, no reader of configurations; and the parser's own imports only for a flag."""
    script = f"""import runpy, sys
sys.argv = ["train.py", "--complete", sys.argv[1]]
try:
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
print(*sys.modules, file=sys.stderr)"""

    def imported(line):
        return set(
            subprocess.run(
                [sys.executable, "-c", script, line], cwd=ROOT, capture_output=True, text=True, check=True
            ).stderr.split()
        )

    heavy = {"torch", "transformers", "numpy", "email", "multiprocessing", "loader.resolve.resolver"}
    assert not heavy & imported("keel-train --task_name m")
    assert not (heavy | {"yaml"}) & imported("keel-train model.")


ZSH_CALL = r"""
compdef() { :; }
compadd() { [[ $1 == -S ]] && shift 2 && kind=open || kind=closed; shift; for word; do print -- $kind $word; done }
_files() { print files }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh: apt-get install zsh")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["train.py", "--task_name", "fashion_mo"], ["closed fashion_mosaics"]),
        (["train.py", "lora_al"], ["open lora_alpha="]),  # no space: the value follows
        (["train.py", "quant_type=n"], ["closed quant_type=nf4"]),
        (["train.py", "--output_dir", ""], ["files"]),
        (["other.py", "--task"], ["files"]),
    ],
)
def test_zsh_with_the_script(words, offered):
    """The function of the script, called as zsh's completion does: with `words` and `CURRENT`."""
    line = " ".join(f"'{word}'" for word in [sys.executable, *words])
    code = f"{ZSH_CALL}\n{ZSH}\nwords=({line}); CURRENT={len(words) + 1}\n_keel_train"
    done = subprocess.run(["zsh", "-f", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stderr, done.stdout.splitlines()) == ("", offered)
