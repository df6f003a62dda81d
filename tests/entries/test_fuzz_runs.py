"""Settings put at random into a tiny run that really starts: it trains its step, or says in one line why not."""

import contextlib
import io
import os
import shutil
import tempfile

import pytest
import yaml
from audited import watching
from configurations import fitting, fuzz, key_paths, time_limit
from hypothesis import strategies as st
from text_sets import write_set
from transformers.utils import logging

import train
from loader.command_line.entry import command_line
from loader.resolve.type_check import members
from loader.schema.keys import OPTIONAL_SECTIONS, scalar_keys

pytestmark = pytest.mark.slow

LONGEST = 60  # seconds
BASE = {
    "task_name": "text",
    "output_dir": "out",
    "report_to": "none",
    "max_steps": 2,
    "logging_steps": 1,
    "save_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "limit_val_batches": 1,
    "dataset": {"path": "data", "block_size": 8},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 8},
}
# What makes a run long or large, leaves the machine, or needs more of it than a test may ask for.
LEFT_OUT = (
    "max_steps", "max_iters", "num_train_epochs", "gradient_accumulation_steps", "dataloader_num_workers",
    "eval_num_workers", "dataloader_prefetch_factor", "per_device_train_batch_size", "per_device_eval_batch_size",
    "tune_batch_size", "torch_compile", "push_to_hub", "hub_always_push", "sample_tokens", "sample_count", "lora_r",
    "devices", "ddp_timeout", "use_mps_device", "full_determinism", "global_batch_size",
)  # fmt: skip
OPTIMIZERS = ("adamw_torch", "sgd", "adafactor", "SGD", "AdamW", "Rprop", "lion", "adagrad", "rmsprop")
SCHEDULES = ("linear", "cosine", "constant_with_warmup", "inverse_sqrt", "cosine_with_restarts", "polynomial", "StepLR",
             "ExponentialLR", "ReduceLROnPlateau", "reduce_lr_on_plateau", "warmup_stable_decay", "greedy")  # fmt: skip


def choices():
    """Keys whose values are numbers, switches and words of a list: no paths, names of models or places to write to."""
    found = [path for path in key_paths() if path.partition(".")[0] in OPTIONAL_SECTIONS and "." in path]
    found = [path for path in found if path not in ("checkpointing.dirpath", "logging.save_dir", "logging.logger_type")]
    for name, key in scalar_keys().items():
        kinds = members(key.annotation)
        if name not in LEFT_OUT and not {str, dict, list} & set(kinds) and "list" not in str(key.annotation):
            found.append(name)
    return sorted(found)


@st.composite
def recipes(draw):
    """The base with one to four keys set to something that their types allow."""
    recipe = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.one_of(st.sampled_from(choices()), st.sampled_from(("optim", "lr_scheduler_type"))))
        words = {"optim": st.sampled_from(OPTIMIZERS), "lr_scheduler_type": st.sampled_from(SCHEDULES)}
        value = draw(words[path] if path in words else fitting(path))
        section, _, name = path.rpartition(".")
        (recipe.setdefault(section, {}) if section else recipe)[name] = value
    return recipe


def outcome(folder, recipe):
    """(exit code, error lines, what was changed outside of the run's folder and the prepared data)."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.rmtree(folder / "out", ignore_errors=True)
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with (
            time_limit(LONGEST),
            watching(folder) as changes,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            command_line(train.main, ["--training_config", "recipe.yaml"])
    except SystemExit as left:
        code = left.code
    inside = (str(folder / "out"), "out", os.environ["KEEL_HOME"], f"{tempfile.gettempdir()}/torchinductor")
    elsewhere = [change for change in changes if not any(f"'{place}" in change for place in inside)]
    return code, [line for line in err.getvalue().splitlines() if line.startswith("error:")], elsewhere


@pytest.fixture
def as_quiet_as_before():
    """A run's `log_level` stays with the process."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


def test_runs_with_settings_put_in_at_random(tmp_path, monkeypatch, as_quiet_as_before):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_set(tmp_path / "data", tokens=(200, 60))
    assert outcome(tmp_path, BASE)[:2] == (0, [])  # and all is imported

    def check(recipe):
        code, errors, elsewhere = outcome(tmp_path, recipe)
        assert code in (0, 1, 2), code
        assert bool(errors) == (code != 0), errors
        assert code != 1 or (len(errors) == 1 and "not finite" in errors[0]), errors
        assert elsewhere == []
        return code

    codes = fuzz(recipes(), check, 30)
    assert codes.count(0) > len(codes) / 10
