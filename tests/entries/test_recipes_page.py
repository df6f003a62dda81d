"""scripts/recipes.py: which recipes are run, that a command which was interrupted continues, and the page."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from scipy.stats import binomtest
from small_runs import SmallRuns

import eval as evaluation
from scripts.recipes import ROOT, Recipe, Runner, commit, load_recipes, page, score

RECIPES = load_recipes(ROOT / "scripts/recipes.yaml")
BASES = {"default", "gpt_base", "gpt", "signals"}  # files that others build on: none scores anything by itself
STEP = """
import json, os, sys
from pathlib import Path
step, words = Path(sys.argv[0]).stem, sys.argv[1:]
with open("calls.txt", "a") as file:
    print(step, *words, file=file)
if os.environ.get("FAILS") == step:
    sys.exit(int(os.environ["CODE"]))
if step == "train":
    out = Path(words[words.index("--output_dir") + 1])
    out.mkdir(exist_ok=True)
    (out / "run.yaml").write_text("seed: 7\\n")
if step == "eval":
    print("test, 40 samples: accuracy 0.9000")
    print(json.dumps({"task": "x", "accuracy": 0.9, "success_rate": 0.5, "success_low": 0.4, "success_high": 0.6}))
"""


@pytest.fixture
def runner(tmp_path):
    """Scripts that write down how they are called, in a repository of their own."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("prepare", "train", "eval"):
        (root / f"{name}.py").write_text(STEP)
    (root / "tiny.yaml").write_text("extends: base.yaml\nmax_steps: 3\n")
    (root / "base.yaml").write_text("task_name: x\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    (tmp_path / "data").mkdir()
    return Runner(tmp_path / "data", tmp_path / "results", root, root)


TINY = Recipe(
    "tiny",
    "three rows",
    prepare="--source {data}/rows",
    train="--set dataset.path={data}/rows",
    eval="--split test",
    scores={"success_rate": "success", "accuracy": "accuracy"},
    of_samples=["accuracy"],
)


def calls(runner):
    file = runner.root / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.split()[0] for line in lines]


@pytest.mark.slow
def test_a_recipe_is_prepared_trained_and_scored_once(runner):
    assert runner.result(TINY) is None and runner.reason_not_to_run(TINY) is None
    runner.run(TINY)
    first, second, third = (runner.root / "calls.txt").read_text().splitlines()
    out = runner.folder(TINY) / "out"
    assert first == f"prepare --source {runner.data}/rows"
    assert second.startswith(f"train --training_config tiny --set dataset.path={runner.data}/rows --output_dir {out} ")
    assert third == f"eval --checkpoint {out} --split test"
    result = runner.result(TINY)
    assert result["seed"] == 7 and result["commit"] == commit(runner.root)
    assert 0 < result["cpu_minutes"] < 1 and 0 < result["minutes"] < 1
    exact = binomtest(36, 40).proportion_ci(0.95, "wilson")
    assert result["scores"]["accuracy_low"] == pytest.approx(exact.low)
    assert runner.reason_not_to_run(TINY) == "done"


@pytest.mark.slow
def test_an_interrupted_recipe_continues(runner, monkeypatch):
    """Training is asked to resume; its minutes are those of both attempts, its commit that of the first."""
    monkeypatch.setenv("FAILS", "train")
    monkeypatch.setenv("CODE", "75")
    with pytest.raises(subprocess.CalledProcessError):
        runner.run(TINY)
    spent = json.loads((runner.folder(TINY) / "minutes.json").read_text())["minutes"]
    assert spent > 0 and calls(runner) == ["prepare", "train"] and runner.result(TINY) is None
    started = commit(runner.root)
    (runner.root / "eval.py").write_text(STEP + "\n")
    monkeypatch.delenv("FAILS")
    runner.run(TINY)
    assert "--resume_from_checkpoint auto" in (runner.root / "calls.txt").read_text()
    assert runner.result(TINY)["minutes"] > spent and runner.result(TINY)["commit"] == started


@pytest.mark.slow
def test_ctrl_c_waits_for_the_step_and_begins_no_other(runner, monkeypatch):
    class Popen(subprocess.Popen):
        def wait(self, timeout=None):
            if not hasattr(self, "is_asked"):
                self.is_asked = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        runner.run(TINY)
    assert stopped.value.returncode == 75 and calls(runner) == ["prepare"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["tiny.yaml", "base.yaml"])
def test_another_configuration_is_run_again(runner, changed):
    runner.run(TINY)
    with (runner.configs / changed).open("a") as file:
        file.write("seed: 3\n")
    assert runner.result(TINY) is None and commit(runner.root).endswith("+")
    calls(runner)
    runner.run(TINY)
    assert calls(runner) == ["prepare", "train", "eval"]


def test_the_page_itself_is_no_local_change(runner):
    """It is written after each recipe; the commit of the next one has no +."""
    file = runner.root / "docs/recipes.md"
    file.parent.mkdir()
    file.write_text("before")
    for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "page"]):
        subprocess.run(["git", "-C", str(runner.root), *words], check=True)
    file.write_text("after")
    assert not commit(runner.root).endswith("+")
    (runner.root / "train.py").write_text("")
    assert commit(runner.root).endswith("+")


def test_what_cannot_be_run_says_why(runner):
    gpu = Recipe("tiny", "images", not_run="GPU, not run")
    absent = Recipe("tiny", "images", needs="images")
    assert runner.reason_not_to_run(gpu) == "GPU, not run" and "images" in runner.reason_not_to_run(absent)
    (runner.data / "images").mkdir()
    assert runner.reason_not_to_run(absent) is None


@pytest.mark.slow
def test_the_page_has_a_row_for_each_recipe(runner):
    others = [Recipe("base", "rows"), Recipe("base", "rows", not_run="GPU, not run")]
    runner.run(TINY)
    text = page([TINY, *others], runner)
    done, absent, gpu = [line.split(" | ") for line in text.splitlines() if line.startswith("| [")]
    low, high = (runner.result(TINY)["scores"][f"accuracy_{end}"] for end in ("low", "high"))
    assert done[3:5] == [f"success 0.500 (0.400 to 0.600); accuracy 0.900 ({low:.3f} to {high:.3f})", "7"]
    assert re.fullmatch(r"\d+\.\d \(\d+\.\d\)", done[2])
    assert absent[2] == "not run" and gpu[2] == "GPU, not run"
    assert "python prepare.py --source DATA/rows\npython train.py --training_config tiny --set" in text
    assert text.count("```bash") == 2  # none of what needs a GPU


def test_a_score_without_an_interval():
    assert score("loss", "validation loss", {"loss": 1.76543}) == "validation loss 1.765"


def test_every_training_file_is_listed():
    files = {path.stem for path in (ROOT / "configs/training").glob("*.yaml")}
    assert {recipe.name for recipe in RECIPES} == files - BASES
    assert all(recipe.scores for recipe in RECIPES if recipe.not_run is None)


def test_the_page_in_the_documentation_lists_what_the_list_has():
    text = (ROOT / "docs/recipes.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)
    assert rows == [recipe.name for recipe in RECIPES]
    commands = [line for line in text.splitlines() if line.startswith("python train.py")]
    assert len(commands) == sum(recipe.not_run is None for recipe in RECIPES)


FORWARD = """
import runpy, sys
sys.path[0] = {root!r}
runpy.run_path({root!r} + "/{name}.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_real_run_of_a_tiny_recipe(runner, tmp_path):
    """Scored as eval.py scores it."""
    runs = SmallRuns(tmp_path / "small")
    words = runs.words("max_steps: 3\nseed: 5\nsave_strategy: steps\nsave_steps: 3", out="tiny")
    for name in ("train", "eval"):
        (runner.root / f"{name}.py").write_text(FORWARD.format(root=str(ROOT), name=name))
    runner.configs = Path(words[1]).parent
    recipe = Recipe("tiny", "episodes", train=f"--training_config {words[1]}", scores={"loss": "loss"})
    runner.run(recipe)
    out, result = runner.folder(recipe) / "out", runner.result(recipe)
    assert result["seed"] == 5 and result["scores"]["loss"] == evaluation.main(["--checkpoint", str(out)])["loss"]
