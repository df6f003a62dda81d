"""The effect of fields of TrainingArguments that are set in a training file."""

import math
import multiprocessing
import os
import signal

import pytest
import torch
import transformers
from run_results import same, tensors
from small_runs import Counts, Determinism, named, stop_workers, weights
from tiny_training import make_trainer

from models.mlp.network import MLP

pytestmark = pytest.mark.slow  # whole small runs, many of them

RATE = 0.01


@pytest.fixture
def restored_settings():
    """Settings of the whole process are restored after the test."""
    verbosity, handler = transformers.logging.get_verbosity(), signal.getsignal(signal.SIGTERM)
    yield
    transformers.logging.set_verbosity(verbosity)
    torch.use_deterministic_algorithms(False)
    signal.signal(signal.SIGTERM, handler)
    torch._dynamo.reset()


# ---- optimization ----


@pytest.mark.keys("lr_scheduler_kwargs")
def test_lr_scheduler_kwargs(run):
    run("lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}")
    assert list(run.log("learning_rate").values()) == pytest.approx([RATE, RATE / 2, RATE, RATE / 2])


@pytest.mark.keys("gradient_accumulation_steps", "dataloader_drop_last")
def test_gradient_accumulation_steps_and_drop_last(run):
    assert run.new("gradient_accumulation_steps: 3", num_train_epochs=2).state.global_step == 2
    for text, steps in (("dataloader_drop_last: true", 2), ("", 3)):
        assert run.new(text, num_train_epochs=1, per_device_train_batch_size=5).state.global_step == steps


@pytest.mark.keys("max_grad_norm")
def test_max_grad_norm(run):
    """The length of a step of SGD is the learning rate times the norm that gradients are clipped to."""
    start = weights(run(out="start", max_steps=1, learning_rate=0, optim="SGD"))
    after = weights(run("max_grad_norm: 0.125", out="cut", max_steps=1, learning_rate=1, optim="SGD"))
    length = math.sqrt(sum(float((after[name] - start[name]).square().sum()) for name in start))
    assert run.log("grad_norm", "cut")[1] > 0.125 and length == pytest.approx(0.125, rel=1e-4)


@pytest.mark.keys("bf16")
def test_bf16(run):
    """Weights stay float32; losses are close, but not equal, to those of float32."""
    run(out="exact", max_steps=1)
    trainer = run("bf16: true", out="rough", max_steps=1)
    exact, rough = run.log("loss", "exact")[1], run.log("loss", "rough")[1]
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact and trainer.model.dtype == torch.float32


@pytest.mark.keys(
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)
@pytest.mark.parametrize(
    "settings",
    [
        "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: true}",
        "activation_checkpointing: true\nactivation_checkpointing_kwargs: {use_reentrant: true}",
    ],
)
def test_checkpointing_of_activations(run, settings):
    if not hasattr(transformers.TrainingArguments, settings.split(":")[0]):
        pytest.skip("another version of transformers")
    flags = {"model_config": "act", "max_steps": 1}
    text = "model: {hidden_dim: 16, num_heads: 2, feedforward_dim: 16, encoder_layers: 1, cvae_layers: 1}"
    base = (run.folder / "base.yaml").read_text().replace("model: {hidden_dim: 8, hidden_layers: 1}\n", "")
    (run.folder / "base.yaml").write_text(base)
    assert not run(text, out="plain", **flags).model.is_gradient_checkpointing
    model = run(f"{text}\n{settings}", out="changed", **flags).model
    functions = [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()]
    functions = [function for function in functions if function]
    assert model.is_gradient_checkpointing and all(function.keywords["use_reentrant"] for function in functions)


@pytest.mark.keys("torch_compile", "torch_compile_backend")
def test_torch_compile(run, restored_settings):
    plain = weights(run(out="plain"))
    torch._dynamo.utils.counters.clear()
    compiled = weights(run("torch_compile: true\ntorch_compile_backend: eager", out="compiled"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.keys() == plain.keys() == tensors(run.folder / "compiled").keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])


@pytest.mark.keys("torch_empty_cache_steps")
def test_torch_empty_cache_steps(run, monkeypatch):
    calls = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda *_: calls.append(1))
    run(out="plain")
    assert not calls
    run("torch_empty_cache_steps: 2", out="flipped")
    assert len(calls) == 2


@pytest.mark.keys("full_determinism")
def test_full_determinism(run, restored_settings, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # it sets variables for the kernels
    for setting, expected in (("false", False), ("true", True)):
        text = f"callbacks: [small_runs.Determinism]\nfull_determinism: {setting}"
        assert named(run.new(text, max_steps=1), Determinism).deterministic is expected


@pytest.mark.keys("data_seed")
def test_data_seed(run):
    """Another order of the samples with the same initial weights."""
    start = [run.new(f"data_seed: {seed}", max_steps=1, learning_rate=0) for seed in (1, 2)]
    after = [run.new(f"data_seed: {seed}", max_steps=1) for seed in (1, 2)]
    assert same(*start) and not same(*after)


# ---- loading ----


@pytest.mark.keys("dataloader_prefetch_factor", "dataloader_in_order", "dataloader_persistent_workers")
def test_workers_prefetch_persist_and_start(run):
    def loaded(text):
        """Settings of a loader, and how many workers there are when it has been read to its end."""
        trainer = run.new(f"{text}\ndataloader_num_workers: 1\ndo_eval: false", max_steps=1)
        stop_workers(trainer.callback_handler.train_dataloader)
        loader, before = trainer.get_train_dataloader(), set(multiprocessing.active_children())
        assert sum(len(batch["state"]) for batch in loader) == 12
        workers = set(multiprocessing.active_children()) - before
        stop_workers(loader)
        return loader.prefetch_factor, loader.in_order, len(workers)

    assert loaded("") == (2, True, 0)
    text = "dataloader_prefetch_factor: 3\ndataloader_in_order: false\ndataloader_persistent_workers: true"
    assert loaded(text) == (3, False, 1)


@pytest.mark.keys("dataloader_multiprocessing_context")
def test_dataloader_multiprocessing_context(tmp_path):
    """Training has workers and evaluation has none."""
    settings = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "forkserver", "eval_num_workers": 0}
    trainer = make_trainer(tmp_path, **settings)
    assert trainer.get_train_dataloader().multiprocessing_context.get_start_method() == "forkserver"
    assert trainer.get_eval_dataloader().num_workers == 0


# ---- logging ----


@pytest.mark.keys("logging_first_step")
def test_logging_first_step(run):
    run("logging_first_step: true", logging_steps=3)
    assert list(run.log("loss")) == [1, 3]


@pytest.mark.keys("logging_nan_inf_filter")
def test_logging_nan_inf_filter(run, monkeypatch):
    """The mean of an evaluation with or without the batches whose loss is NaN."""
    forward = MLP.forward

    def with_nan(self, state, *more, **options):
        output = forward(self, state, *more, **options)
        if not self.training and options["timestep"].min() == 0:
            output["losses"] = {"action": output["loss"] * math.nan}
            output["loss"] = output["losses"]["action"]
        return output

    monkeypatch.setattr(MLP, "forward", with_nan)
    run(out="plain", max_steps=1)
    run("logging_nan_inf_filter: true", out="filtered", max_steps=1)
    assert run.log("eval_loss", "plain") == {1: "nan"} and math.isfinite(run.log("eval_loss", "filtered")[1])


@pytest.mark.keys("log_level")
def test_log_level(run, restored_settings):
    run("log_level: error", max_steps=1)
    assert transformers.logging.get_verbosity() == transformers.logging.ERROR


@pytest.mark.keys("disable_tqdm")
def test_disable_tqdm(run, capfd):
    run("disable_tqdm: true", out="lines", max_steps=1)
    assert "step/s" not in capfd.readouterr().err
    run("disable_tqdm: false", out="bar", max_steps=1)
    assert "1/1 [" in capfd.readouterr().err


@pytest.mark.keys("skip_memory_metrics")
def test_skip_memory_metrics(run):
    run(out="plain", max_steps=1)
    run("skip_memory_metrics: false", out="shown", max_steps=1)
    assert not run.log("train_mem_cpu_alloc_delta", "plain") and run.log("train_mem_cpu_alloc_delta", "shown")


@pytest.mark.keys("use_cache")
def test_use_cache(run):
    assert run(out="a", max_steps=1).model.config.use_cache is False
    assert run("use_cache: true", out="b", max_steps=1).model.config.use_cache is True


@pytest.mark.keys("debug")
def test_debug_underflow_overflow(run):
    """The first module that overflows is named."""
    run(out="plain", learning_rate=1e38, do_eval="false")
    with pytest.raises(ValueError, match="DebugUnderflowOverflow"):
        run("debug: underflow_overflow", out="watched", learning_rate=1e38, do_eval="false")


# ---- evaluation ----


@pytest.mark.keys("eval_strategy", "eval_delay", "eval_on_start")
@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("eval_strategy: epoch\neval_steps: null\nmax_steps: 6", [3, 6]),
        ("eval_strategy: 'no'\neval_steps: null", []),
        ("eval_steps: 1\neval_delay: 3", [3, 4]),
        ("eval_steps: 2\neval_on_start: true", [0, 2, 4]),
        ("check_val_every_n_epoch: 1\neval_steps: null\neval_delay: 2\nnum_train_epochs: 3\nmax_steps: -1", [6, 9]),
        ("check_val_every_n_epoch: 2\neval_steps: null\neval_delay: 3\nnum_train_epochs: 4\nmax_steps: -1", [12]),
    ],
)
def test_when_to_evaluate(run, text, steps):
    run(text)
    assert list(run.log("eval_loss")) == steps


# ---- checkpoints ----

EACH_STEP = "save_strategy: steps\nsave_steps: 1\neval_steps: 1\nlearning_rate: 0.1\nmax_steps: 6"


@pytest.mark.keys("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
def test_the_best_model_at_the_end(run):
    for out, text, choose in (
        ("loss", "metric_for_best_model: loss", min),
        ("greater", "metric_for_best_model: loss\ngreater_is_better: true", max),
        ("action", "metric_for_best_model: loss_action\ngreater_is_better: false", min),
    ):
        run(f"{EACH_STEP}\nload_best_model_at_end: true\n{text}", out=out)
        values = run.log("eval_loss", out)
        best = choose(values, key=values.get)
        assert same(run.folder / out, run.folder / out / f"checkpoint-{best}"), out
    assert not same(run.folder / "loss" / "checkpoint-6", run.folder / "greater")


def test_saving_only_the_best(run):
    run(f"{EACH_STEP}\nmetric_for_best_model: loss\nsave_strategy: best")
    best, expected = math.inf, []
    for step, value in run.log("eval_loss").items():
        if value < best:
            best, expected = value, [*expected, step]
    assert run.checkpoints() == expected


@pytest.mark.keys("save_only_model")
def test_save_only_model(run):
    for wanted in ("true", "false"):
        run(f"{EACH_STEP}\nsave_only_model: {wanted}", out=wanted, max_steps=1)
        files = {path.name for path in (run.folder / wanted / "checkpoint-1").iterdir()}
        assert "model.safetensors" in files and ("optimizer.json" in files) == (wanted == "false")


# ---- resuming ----


@pytest.mark.keys("ignore_data_skip")
def test_ignore_data_skip(run):
    """A resumed run starts its epoch again instead of after the batches that were already used."""
    text = f"{EACH_STEP}\nmax_steps: 4\nresume_changed: allow"
    run(text, out="whole")
    for wanted in ("false", "true"):
        resumed = run.new(
            f"{text}\nignore_data_skip: {wanted}", resume_from_checkpoint=run.folder / "whole/checkpoint-2"
        )
        assert same(resumed, run.folder / "whole") == (wanted == "false")


@pytest.mark.keys("restore_callback_states_from_checkpoint")
def test_restore_callback_states_from_checkpoint(run):
    text = f"{EACH_STEP}\ncallbacks: [small_runs.Counts]"
    run(text, out="whole")
    for wanted, steps in (("false", 2), ("true", 6)):
        setting = f"restore_callback_states_from_checkpoint: {wanted}"
        trainer = run.new(f"{text}\n{setting}", resume_from_checkpoint=run.folder / "whole/checkpoint-4")
        assert named(trainer, Counts).steps == steps


@pytest.mark.keys("optim_args")
def test_optim_args(run):
    """Options in transformers' own spelling reach the optimizer, or are refused."""
    trainer = run("optim: SGD\noptim_args: momentum=0.5", max_steps=1)
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
