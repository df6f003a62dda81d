"""What `--check` finds without torch: import paths of callbacks, files that keys name, misspelt monitors."""

import subprocess
import sys
from pathlib import Path

import pytest
from text_folders import counting, write_text_folder

from loader.checks import static_checks
from loader.checks.names import import_problem
from loader.output.render import left_to_start, summary
from loader.resolve.resolver import resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import fails: looking must not import it."""
    folder = tmp_path / "own_lab" / "inner"
    folder.mkdir(parents=True)
    for init in (folder.parent, folder):
        (init / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "hooks.py").write_text(
        "import torch\nfrom os import path as where\n\ntry:\n    class Mine: ...\nexcept Exception:\n"
        "    class Other: ...\nAgain = Third = Mine\n"
    )
    (folder / "open.py").write_text("from somewhere import *\n")
    (folder / "broken.py").write_text("class (\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("own_lab.inner.hooks.Mine", None),
        ("own_lab.inner.hooks.Other", None),
        ("own_lab.inner.hooks.Again", None),
        ("own_lab.inner.hooks.Third", None),
        ("own_lab.inner.hooks.where", None),
        ("own_lab.inner.hooks.Mien", "`Mine`"),
        ("own_lab.inner.open.Anything", None),  # only an import could tell
        ("own_lab.inner.broken.Anything", None),
        ("own_lab.iner.hooks.Mine", "`own_lab.iner`"),
        ("own_lab.inner.hooks.Mine.deeper", "`own_lab.inner.hooks`"),
        ("nowhere_at_all.Mine", "`nowhere_at_all`"),
        ("torch.optim.AdamW", None),
        ("zlib.Mine", None),  # no source
    ],
)
def test_import_paths(package, path, says):
    problem = import_problem(path)
    assert problem is None if says is None else says in problem, problem


def problems(*settings):
    return static_checks.check_run(resolve(None, list(settings)))


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config", "accelerator_config"])
def test_files_that_keys_name_must_exist(in_root, tmp_path, key):
    switch = ["fsdp=true"] if key == "fsdp_config" else []
    out, file = f"output_dir={tmp_path / 'out'}", tmp_path / "set.json"
    (line,) = [line for line in problems(out, f"{key}={file}", *switch) if "does not exist" in line]
    assert line.startswith(f"`{key}: {file}` in --set ")
    file.write_text("{}")
    assert not [line for line in problems(out, f"{key}={file}", *switch) if "does not exist" in line]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("early_stopping.monitor=eval_perplexit", "early_stopping.monitor"),
        ("checkpointing.monitor=[val/bits_per_bite]", "checkpointing.monitor"),
        ("metric_for_best_model=perplexty greater_is_better=false", "metric_for_best_model"),
        ("early_stopping.monitor=val/perplexity", None),
        ("early_stopping.monitor=eval_loss_extra", None),  # a term of the loss
        ("early_stopping.monitor=eval_code_perplexity", None),  # of one of several sets
        ("early_stopping.monitor=grad_norm", None),
        ("early_stopping.monitor=eval_perplexit callbacks=[own.Thing]", None),  # it may log that
    ],
)
def test_misspelt_monitors(in_root, tmp_path, settings, key):
    write_text_folder(tmp_path / "text", counting(300, 60))
    lines = problems("task_name=text", f"dataset.path={tmp_path / 'text'}", f"output_dir={tmp_path / 'out'}",
                     *settings.split())  # fmt: skip
    lines = [line for line in lines if "not logged" in line]
    assert len(lines) == (key is not None) and all(line.startswith(f"`{key}: ") for line in lines)


def test_the_summary_ends_with_what_only_the_start_can_check(in_root, tmp_path):
    run = resolve(None, [f"output_dir={tmp_path / 'out'}", "bf16=true", "freeze=[head]", "callbacks=[os.Foo]"])
    left = left_to_start(run)
    assert summary(run).splitlines()[-1].endswith(", ".join(left))
    assert any("freeze" in part for part in left) and any("bf16" in part for part in left)
    assert any("callbacks" in part for part in left) and not any("lora_module" in part for part in left)
    plain = left_to_start(resolve(None, [f"output_dir={tmp_path / 'out'}"]))
    assert len(plain) == 1


@pytest.mark.slow
def test_the_metrics_of_a_task_are_known_without_torch():
    code = (
        "import sys; from loader.schema.components import component_module, shipped\n"
        "kinds = [component_module('dataset', name) for name in shipped('dataset')]\n"
        "print(sorted(name for kind in kinds if hasattr(kind, 'metric_names') for name in kind.metric_names()))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "'perplexity'" in done.stdout and "'accuracy'" in done.stdout, done.stderr
