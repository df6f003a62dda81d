"""The command line of an array's task, without Slurm."""

import importlib.util
from pathlib import Path

import pytest

from loader.command_line.parser import argument_parser
from loader.schema.alias_flags import alias_paths
from loader.sources.key_aliases import ALIASES

FILE = Path(__file__).resolve().parent.parent.parent / "scripts/slurm/array_task.py"
SPEC = importlib.util.spec_from_file_location("array_task", FILE)
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)

COMMON = ["--training_config", "x.yaml", "--output_dir", "runs/sweep"]


def sweep(tmp_path, text):
    (tmp_path / "sweep.txt").write_text(text)
    return str(tmp_path / "sweep.txt")


@pytest.mark.slow
def test_a_task_without_a_sweep_has_a_folder_of_its_own():
    assert module.array_task(3, "", COMMON) == [*COMMON, "--output_dir", "runs/sweep/3"]


@pytest.mark.slow
def test_each_task_has_its_line_quoted_as_in_a_shell(tmp_path):
    file = sweep(tmp_path, "# rates\n--seed 1\n\n--set 'task=a b' note=\"it's\" '' '$HOME *'\n")
    assert module.array_task(0, file, COMMON) == [*COMMON, "--seed", "1", "--output_dir", "runs/sweep/0"]
    words = ["--set", "task=a b", "note=it's", "", "$HOME *"]
    assert module.array_task(1, file, COMMON) == [*COMMON, *words, "--output_dir", "runs/sweep/1"]


def test_a_line_may_name_its_folder(tmp_path):
    file = sweep(tmp_path, "--output_dir=runs/a\n--out_dir runs/b\n")
    assert module.array_task(0, file, ["--seed", "1"]) == ["--seed", "1", "--output_dir=runs/a"]
    assert module.array_task(1, file, ["--seed", "1"]) == ["--seed", "1", "--out_dir", "runs/b"]


def names_of_the_folder():
    """Every flag and every key of --set that train.py takes for its output folder, as a command line has them."""
    dests = {"output_dir", *(word for word, path in alias_paths().items() if path == "output_dir")}
    flags = [flag for flag, action in argument_parser()._option_string_actions.items() if action.dest in dests]
    keys = ["output_dir", *(key for key, home in ALIASES.items() if home == "output_dir")]
    return flags, keys


def test_all_of_train_pys_names_for_the_folder_are_known(tmp_path):
    flags, keys = names_of_the_folder()
    assert {"--output-dir", "--out-dir"} <= {*flags} and {"out_dir", "save_dir", "trainer.default_root_dir"} <= {*keys}
    for flag in flags:
        file = sweep(tmp_path, f"{flag} runs/hot\n{flag}=runs/hot/\n{flag}=runs/cold\n")
        assert module.array_task(2, file, COMMON) == [*COMMON, f"{flag}=runs/cold"]
        with pytest.raises(ValueError, match="tasks 0 and 1 both write to .*/runs/hot; give each"):
            module.array_task(0, file, COMMON)
    for key in keys:
        section, _, last = key.rpartition(".")
        words = [["--set", f"{key}=a"], ["--set", "seed=1", f"{key.replace('.', ' . ')} =a"], [f"--set={key}=a"]]
        words += [["--set", f"{section}={{{last}: a}}"]] if section else []
        for word in words:
            with pytest.raises(ValueError, match="in an array, name the folder by --output_dir"):
                module.array_task(0, "", [*COMMON, *word])


def test_what_is_wrong_with_another_line_stops_no_task(tmp_path):
    file = sweep(tmp_path, "--seed 1\n--lerning_rate 1\n--set save_dir=x\n")
    assert module.array_task(0, file, COMMON) == [*COMMON, "--seed", "1", "--output_dir", "runs/sweep/0"]
    with pytest.raises(ValueError, match="unknown flag `--lerning_rate`"):
        module.array_task(1, file, COMMON)


@pytest.mark.parametrize(
    ("text", "task", "common", "says"),
    [
        ("--seed 1\n", 1, COMMON, "no line for task 1: its tasks are 0 to 0; submit with --array=0-0"),
        ("\n", 0, COMMON, "no line for task 0: it has no lines"),
        ("--seed 1\n--seed 2\n", 0, ["--seed", "3"], "task 0 has no --output_dir"),
        ("--seed 1\n--output_dir runs/../runs/sweep/0\n", 0, COMMON, "tasks 0 and 1 both write to"),
        ("--output_dir a\n--output_dir a/\n", 1, [], "tasks 0 and 1 both write to"),
        ("--seed 1\n--set 'a\n", 0, COMMON, "sweep.txt:2 cannot be read: no closing quotation"),
        ("output_dir=a\n", 0, [*COMMON, "--set", "seed=1"], "sweep.txt:1 begins with `output_dir=a`; begin it with"),
    ],
)
def test_what_could_mix_runs_up_is_refused(tmp_path, text, task, common, says):
    with pytest.raises(ValueError, match=None) as refused:
        module.array_task(task, sweep(tmp_path, text), common)
    assert says in str(refused.value)


def test_a_sweep_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="missing.txt cannot be read: No such file"):
        module.array_task(0, str(tmp_path / "missing.txt"), COMMON)
