"""Run the shipped recipes and write docs/recipes.md from what they scored.

    make recipes DATA=DIR                                      all recipes that a CPU can run
    python -m scripts.recipes --data DIR --only mosaics_cpu    some of them
    python -m scripts.recipes --table                          only write the table again

scripts/recipes.yaml lists the recipes. A finished one is kept as $KEEL_HOME/recipes/NAME-VERSION/result.json, where
VERSION is a hash of its entry and of its training files: the same command skips it, and continues what was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from sim.rollout import wilson_interval
from storage.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/recipes.md"
SAMPLES = re.compile(r"([\d,]+) samples: ")  # how many eval.py has scored
INTERRUPTED = 75  # exit code of a training that was asked to end; it continues
HEAD = """# Recipes

`make recipes DATA=DIR` runs the recipes that a CPU can run, one after the other, and writes this page from their
results; after an interruption the same command continues. DIR has the files that the commands name. Minutes are those
of training on a machine with two cores, wall time and in parentheses CPU time: where other jobs share the cores, the
former is longer. Intervals are Wilson's, 95 %. A commit with `+` had local changes.

| recipe | data | minutes | score | seed | commit |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Recipe:
    """An entry of recipes.yaml, see there."""

    name: str
    data: str
    needs: str | None = None
    prepare: str | list[str] | None = None
    train: str = ""
    eval: str = ""
    scores: dict[str, str] = field(default_factory=dict)
    of_samples: list[str] = field(default_factory=list)
    not_run: str | None = None

    def commands(self, data: str, out: str) -> dict[str, list[str]]:
        """Step -> script and words; `data` and `out` are folders, or what stands for them."""
        train = ["train.py", "--training_config", self.name, *_words(self.train, data), "--output_dir", out]
        asked = [self.prepare] if isinstance(self.prepare, str) else self.prepare or []
        prepare = {f"prepare{index or ''}": ["prepare.py", *_words(words, data)] for index, words in enumerate(asked)}
        return {**prepare, "train": train, "eval": ["eval.py", "--checkpoint", out, *_words(self.eval, data)]}

    def version(self, configs: Path) -> str:
        """A hash of the entry and of the training files, whose comments do not count."""
        digest = hashlib.sha256(repr([(item.name, getattr(self, item.name)) for item in fields(self)]).encode())
        name: str | None = self.name
        while name is not None:
            content = yaml.safe_load((configs / name).with_suffix(".yaml").read_text(encoding="utf-8"))
            digest.update(json.dumps(content, sort_keys=True).encode())
            name = content.get("extends")
        return digest.hexdigest()[:10]


def _words(text: str, data: str) -> list[str]:
    return [word.replace("{data}", data) for word in shlex.split(text)]


def load_recipes(file: Path) -> list[Recipe]:
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [Recipe(name, **entry) for name, entry in entries.items()]


# ---- running ----


@dataclass
class Runner:
    """Runs recipes and keeps what they score.

    Args:
        data: Folder of the raw data.
        results: Gets a folder for each recipe and version.
        configs: Folder of the training files.
        root: Folder with train.py, eval.py and prepare.py.
    """

    data: Path
    results: Path
    configs: Path = ROOT / "configs/training"
    root: Path = ROOT

    def folder(self, recipe: Recipe) -> Path:
        return self.results / f"{recipe.name}-{recipe.version(self.configs)}"

    def result(self, recipe: Recipe) -> dict[str, Any] | None:
        """What the recipe has scored; None: it has not been run in its present form."""
        file = self.folder(recipe) / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def reason_not_to_run(self, recipe: Recipe) -> str | None:
        if recipe.not_run is not None:
            return recipe.not_run
        if recipe.needs is not None and not (self.data / recipe.needs).exists():
            return f"{self.data / recipe.needs} does not exist"
        return "done" if self.result(recipe) is not None else None

    def run(self, recipe: Recipe) -> None:
        """Prepare, train (on from where it was interrupted) and score; writes result.json at the end.

        Raises:
            subprocess.CalledProcessError: a step failed; its output is in the recipe's folder.
        """
        folder = self.folder(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        commands = recipe.commands(str(self.data), str(folder / "out"))
        commands["train"] += ["--resume_from_checkpoint", "auto"]
        for step, words in commands.items():
            self.step(folder, step, words)
        lines = (folder / "eval.log").read_text(encoding="utf-8").strip().splitlines()
        scores = json.loads(lines[-1])
        for name in recipe.of_samples:
            count = int(next(found[1] for line in lines if (found := SAMPLES.search(line))).replace(",", ""))
            scores[f"{name}_low"], scores[f"{name}_high"] = wilson_interval(round(scores[name] * count), count)
        run = yaml.safe_load((folder / "out/run.yaml").read_text(encoding="utf-8"))
        minutes = json.loads((folder / "minutes.json").read_text(encoding="utf-8"))
        commit = json.loads((folder / "commit.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
        write_json(folder / "result.json", {"scores": kept, "seed": run["seed"], "commit": commit, **minutes})

    def step(self, folder: Path, name: str, words: list[str]) -> None:
        """Run a command; that of training adds its wall and CPU minutes to those of earlier attempts."""
        print(f"{folder.name}: python {shlex.join(words)}", flush=True)
        if name == "train" and not (folder / "commit.json").exists():
            write_json(folder / "commit.json", commit(self.root))
        started, used = time.monotonic(), _cpu_seconds()
        try:
            with (folder / f"{name}.log").open("a" if name == "train" else "w", encoding="utf-8") as log:
                self.call(words, log)
        finally:
            if name == "train":
                file = folder / "minutes.json"
                before = json.loads(file.read_text()) if file.exists() else {"minutes": 0.0, "cpu_minutes": 0.0}
                wall, cpu = (time.monotonic() - started) / 60, (_cpu_seconds() - used) / 60
                write_json(file, {"minutes": before["minutes"] + wall, "cpu_minutes": before["cpu_minutes"] + cpu})

    def call(self, words: list[str], log: Any) -> None:
        """Run a command to its end. Ctrl-C reaches it too: a training saves its state, which takes a moment."""
        process = subprocess.Popen([sys.executable, *words], cwd=self.root, stdout=log)
        code, is_interrupted = None, False
        while code is None:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                is_interrupted = True
        if code or is_interrupted:
            raise subprocess.CalledProcessError(INTERRUPTED if is_interrupted else code, words)


def _cpu_seconds() -> float:
    """Of all ended child processes, user and system."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def commit(root: Path) -> str:
    """The commit of the working tree, with + if tracked files, other than the page written here, have changed since."""
    git = ["git", "-C", str(root)]
    name = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno", "--", ".", f":(exclude){PAGE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


# ---- the page ----


def page(recipes: list[Recipe], runner: Runner) -> str:
    """docs/recipes.md: a row for each recipe, and its commands."""
    rows = [row(recipe, runner.result(recipe)) for recipe in recipes]
    texts = [HEAD + "\n".join(rows), "## Commands", "DATA is the folder with the raw data, OUT the run's."]
    for recipe in recipes:
        if recipe.not_run is None:
            commands = recipe.commands("DATA", "OUT").values()
            lines = "\n".join(f"python {' '.join(words)}" for words in commands)
            texts.append(f"```bash\n# {recipe.name}\n{lines}\n```")
    return "\n\n".join(texts) + "\n"


def row(recipe: Recipe, result: dict[str, Any] | None) -> str:
    name = f"[`{recipe.name}`](../configs/training/{recipe.name}.yaml)"
    if result is None:
        return f"| {name} | {recipe.data} | {recipe.not_run or 'not run'} | | | |"
    minutes = f"{result['minutes']:.1f} ({result['cpu_minutes']:.1f})"
    scores = "; ".join(score(key, title, result["scores"]) for key, title in recipe.scores.items())
    return f"| {name} | {recipe.data} | {minutes} | {scores} | {result['seed']} | {result['commit']} |"


def score(key: str, title: str, scores: dict[str, float]) -> str:
    """A score with its name, and its interval if there is one."""
    stem = key.removesuffix("_rate")
    text = f"{title} {scores[key]:.3f}"
    return f"{text} ({scores[f'{stem}_low']:.3f} to {scores[f'{stem}_high']:.3f})" if f"{stem}_low" in scores else text


def main(arguments: list[str] | None = None) -> int:
    """Run what has not been run, write the page; 1 if a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the raw data")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes to run; default: all")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page")
    parser.add_argument("--output", type=Path, default=ROOT / PAGE, help="the page")
    asked = parser.parse_args(arguments)
    recipes = load_recipes(ROOT / "scripts/recipes.yaml")
    if unknown := set(asked.only or ()) - {recipe.name for recipe in recipes}:
        parser.error(f"there is no recipe {', '.join(sorted(unknown))}; scripts/recipes.yaml lists them")
    if asked.data is None and not asked.table:
        parser.error("name the folder of the raw data with --data DIR, or only write the page with --table")
    home = Path(os.environ.get("KEEL_HOME") or "~/.cache/keel").expanduser()
    runner, failed = Runner((asked.data or Path("DATA")).expanduser().absolute(), home / "recipes"), False
    for recipe in recipes if not asked.table else ():
        if asked.only is not None and recipe.name not in asked.only:
            continue
        if reason := runner.reason_not_to_run(recipe):
            print(f"{recipe.name}: {reason}", flush=True)
            continue
        try:
            runner.run(recipe)
        except subprocess.CalledProcessError as error:
            if error.returncode == INTERRUPTED:
                print(f"{recipe.name}: interrupted; the same command continues", flush=True)
                return INTERRUPTED
            print(f"{recipe.name}: exit code {error.returncode}; see {runner.folder(recipe)}", flush=True)
            failed = True
        write_text(asked.output, page(recipes, runner))
    write_text(asked.output, page(recipes, runner))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
