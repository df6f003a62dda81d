"""Language models through the command line, with the flags of the fourth document."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from run_results import error_line, metrics, same, tensors
from text_sets import ALPHABET, SMALL, run, write_set

import eval as evaluation
from trainer.run_differences import differences

pytestmark = pytest.mark.slow

MODES = {
    "single": "--dataset a",
    "multidataset": "--training_mode=multidataset --dataset_list a b --dataset_sampling_probs 0.5 0.5",
    "annealed": "--training_mode=multidataset --dataset_list a b --dataset_sampling_probs 0.9 0.1 "
    "--dataset_sampling_probs_final 0.1 0.9",
    "interleaved": "--training_mode=multidataset --dataset_list a b --dataset_interleaving",
    "separate": "--training_mode=multidataset --dataset_list a b --multidataset_wte",
    "multicontext": "--training_mode=multicontext --multicontext_datasets a b",
}

SEVERAL_TOKENIZERS = ("separate", "multicontext")  # these modes have no samples
UNSIZED = SMALL.replace("--n_layer 1 --n_head 2 --n_embd 16 ", "")  # for a network that has its sizes
ONE_STEP = UNSIZED.replace("--max_iters 6 --warmup_iters 2", "--warmup_iters 0 --max_iters 1")
NO_SAMPLES = SMALL.replace("--max_sample_tokens 4", "")


def line_of(mode):
    """The command line of a small run in this mode."""
    return f"{MODES[mode]} {NO_SAMPLES if mode in SEVERAL_TOKENIZERS else SMALL}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Data sets a and b, found by name; runs write to out/ in the working folder."""
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_set(tmp_path / "home" / "datasets" / name, seed)
    return tmp_path


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_is_the_uninterrupted_one(home, mode):
    """Weights, log and samples, with dropout, from a checkpoint in the middle; only the folder is given again."""
    whole = run(f"{line_of(mode)} --dropout 0.2 --decay_lr --out_dir out/a")
    shutil.copytree("out/a", "whole", symlinks=True)
    shutil.rmtree("out/a/checkpoint-6")
    (home / "out/a/model.safetensors").unlink()
    resumed = run("--init_from=resume --out_dir=out/a")
    assert resumed.state.global_step == 6 and same(whole, resumed)
    assert differences(home / "whole", home / "out/a") == []
    if mode not in SEVERAL_TOKENIZERS:
        steps = [sample["step"] for sample in samples(home / "out/a")]
        assert steps and steps == sorted(set(steps))


def test_other_data_under_the_same_name(home, capsys):
    """Resuming is refused; eval.py warns."""
    run(f"--dataset a {SMALL} --out_dir out/a")
    evaluation.main(["--checkpoint", "out/a"])
    assert "warning: " not in capsys.readouterr().err
    shutil.rmtree(home / "home/datasets/a")
    write_set(home / "home/datasets/a", seed=5)
    assert evaluation.main(["--checkpoint", "out/a"])["loss"] > 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "out/a" in lines[0] and "data[0].train[1]" in lines[0]
    shutil.rmtree("out/a/checkpoint-6")
    assert "data[0].train[1]" in error_line(capsys, run, "--init_from=resume --out_dir=out/a")


def test_what_is_logged(home):
    trainer = run(f"--dataset a {SMALL} --out_dir out/a")
    folder = home / "out/a"
    assert metrics(folder, "tokens") == {step: step * 4 * 16 for step in range(1, 7)}
    rates, by_sample = metrics(folder, "tokens_per_second"), metrics(folder, "samples_per_second")
    assert all(rates[step] == pytest.approx(16 * by_sample[step], rel=1e-3) for step in rates) and rates
    loss, chance = metrics(folder, "loss"), metrics(folder, "better_than_chance")
    assert all(chance[step] == pytest.approx(len(ALPHABET) / math.exp(loss[step]), rel=1e-6) for step in loss)
    evaluated = metrics(folder, "eval_loss")
    assert list(evaluated) == [3, 6] and metrics(folder, "eval_perplexity")[6] == pytest.approx(math.exp(evaluated[6]))
    assert metrics(folder, "eval_bits_per_byte")[6] == pytest.approx(evaluated[6] / math.log(2))
    assert len(trainer.eval_dataset) == 2 * 4  # eval_iters batches
    first = samples(folder)[0]
    assert first["step"] == 3 and len(first["text"]) == 1 + 4


@pytest.mark.keys("sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k")
def test_sample_keys(home):
    def texts(name, **keys):
        settings = [f"{key}={value}" for key, value in keys.items()]
        run(f"--dataset a {NO_SAMPLES} --out_dir out/{name} --set", *settings)
        return [sample["text"] for sample in samples(home / "out" / name)]

    with pytest.raises(FileNotFoundError):
        texts("none", sample_tokens=0)
    some = texts("some", sample_tokens=30, sample_prompt="abc", sample_count=2, sample_temperature=2.0, sample_top_k=10)
    assert all(len(text) == 33 and text.startswith("abc") for text in some) and some[0] != some[1]
    coldest = texts("cold", sample_tokens=30, sample_prompt="abc", sample_temperature=0)
    greedy = texts("greedy", sample_tokens=30, sample_prompt="abc", sample_temperature=1.0, sample_top_k=1)
    assert coldest == greedy and coldest[0] != some[0]


def test_a_text_of_one_line_has_samples_too(home, capsys):
    """The default prompt is a line break, which its vocabulary lacks; a prompt that is set must be in it."""
    write_set(home / "home/datasets/line", alphabet="abcdefgh")
    run(f"--dataset line {SMALL} --out_dir out/line")
    assert all(sample["text"].startswith("a") and len(sample["text"]) == 5 for sample in samples(home / "out/line"))
    line = f"--dataset line {SMALL} --sample_start_tokens Z --out_dir out/z"
    assert "sample_prompt" in error_line(capsys, run, line)


def test_batch_and_block_size_and_log_interval(home):
    trainer = run(f"--dataset a {SMALL} --out_dir out/a".replace("--log_interval 1", "--log_interval 2"))
    assert list(metrics(home / "out/a", "loss")) == [2, 4, 6]
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (4, 16)
    assert torch.equal(batch["input_ids"][:, 1:], batch["shift_labels"][:, :-1])


def test_losses_of_each_set_and_their_mean(home):
    run(f"{MODES['multidataset']} {SMALL} --out_dir out/m")
    first, second = (metrics(home / "out/m", f"eval_{name}_loss") for name in "ab")
    mean = metrics(home / "out/m", "eval_loss")
    assert list(mean) == [3, 6] and mean[6] == pytest.approx((first[6] + second[6]) / 2) and first[6] != second[6]


def test_losses_of_each_context(home):
    run(f"{line_of('multicontext')} --out_dir out/c")
    for prefix in ("", "eval_"):
        loss, first, second = (metrics(home / "out/c", f"{prefix}loss{name}") for name in ("", "_a", "_b"))
        assert loss[6] == pytest.approx((first[6] + second[6]) / 2, rel=1e-4)


def test_evaluation_by_hand(home, capsys):
    """eval.py over all windows of val.bin, against the model called on each of them."""
    trainer = run(f"--dataset a {SMALL} --out_dir out/a")
    scores = evaluation.main(
        ["--checkpoint", "out/a", "--samples", "2", "--tokens", "5", "--prompt", "ab", "--seed", "3"]
    )
    tokens = torch.from_numpy(np.fromfile(home / "home/datasets/a/val.bin", np.uint16).astype(np.int64))
    windows = [tokens[start : start + 17] for start in range(0, len(tokens) - 16, 16)]
    trainer.model.eval()
    with torch.no_grad():
        logits = [trainer.model(input_ids=window[None, :-1])["logits"][0, :, : len(ALPHABET)] for window in windows]
    targets = [window[1:] for window in windows]
    losses = [torch.nn.functional.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]
    assert scores["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["bits_per_byte"] == pytest.approx(scores["loss"] / math.log(2))
    assert len(scores["samples"]) == 2 and all(text.startswith("ab") and len(text) == 7 for text in scores["samples"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == scores["loss"]
    for words in ("--episodes 50", "--prompt ab", "--seed 3", "--video"):  # refused although some are the defaults
        line = error_line(capsys, evaluation.main, ["--checkpoint", "out/a", *words.split()])
        assert f"`{words.split()[0]} " in line


@pytest.mark.keys("load_optimizer")
def test_prev_run_takes_weights_and_optimizer_and_starts_at_step_0(home):
    """The flag sets `load_optimizer` and `is_pretrained`."""
    before = run(f"--dataset a {SMALL} --out_dir out/a")
    after = run(f"--init_from=prev_run --prev_run_ckpt out/a --dataset b {ONE_STEP} --out_dir out/b --learning_rate 0")
    assert after.state.global_step == 1 and same(before, after)  # the learning rate is 0
    assert optimizer_steps(after) == {7}


def has_weights_of(trainer, folder):
    """A file has tied weights once, a model under each name."""
    stored, state = tensors(folder), tensors(trainer)
    return same({name: state[name] for name in stored}, stored)


def optimizer_steps(trainer):
    return {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()}


def test_decay_lr(home):
    """nanoGPT's schedule by hand: a linear warm-up, then half a cosine down to min_lr at lr_decay_iters."""
    run(f"--dataset a {SMALL} --out_dir out/d --decay_lr --lr_decay_iters 5 --min_lr 2e-4 --learning_rate 1e-3")
    rates = metrics(home / "out/d", "learning_rate")

    def by_hand(done):
        if done < 2:
            return 1e-3 * done / 2
        share = min(1, (done - 2) / (5 - 2))
        return 2e-4 + 0.5 * (1 + math.cos(math.pi * share)) * (1e-3 - 2e-4)

    assert [rates[step] for step in range(1, 7)] == pytest.approx([by_hand(done) for done in range(6)], rel=1e-6)
    run(f"--dataset a {SMALL} --out_dir out/n")
    flat = metrics(home / "out/n", "learning_rate")
    assert [flat[step] for step in range(1, 7)] == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def test_weight_decay_grad_clip_and_betas_act(home):
    whole = run(f"--dataset a {SMALL} --out_dir out/0")
    groups = whole.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0} and groups[0]["betas"] == (0.9, 0.99)
    for number, words in enumerate(("--weight_decay 0", "--grad_clip 0.01", "--beta1 0.5", "--beta2 0.5", "--seed 7")):
        assert not same(whole, run(f"--dataset a {SMALL} --out_dir out/x{number} {words}")), words


def test_from_gpt2_of_any_size(home):
    """The first evaluation has the loss of transformers' own GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 40}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    theirs.save_pretrained(home / "tiny")
    trainer = run(
        f"--init_from=gpt2 --gpt2_type {home / 'tiny'} --dataset=a {UNSIZED} --out_dir=out/f --learning_rate 0"
    )
    batch = next(iter(trainer.get_eval_dataloader()))
    logits = theirs(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.model(**{key: batch[key] for key in ("input_ids", "shift_labels", "labels")})["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_from_any_causal_language_model(home):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=len(ALPHABET), max_position_embeddings=32, **sizes))
    theirs.save_pretrained(home / "llama")
    trainer = run(f"--init_from={home / 'llama'} --dataset=a {UNSIZED} --out_dir=out/f --learning_rate 0")
    assert type(trainer.model).__name__ == "LlamaForCausalLM" and same(trainer, theirs.state_dict())


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--dataset c", "prepare.py --dataset c"),
        ("--init_from=resume --out_dir=out/none", "out/none"),
        ("--training_mode=multidataset --dataset_list a b --dataset_sampling_probs 0.5 0.6", "dataset_sampling_probs"),
        ("--training_mode=multidataset --dataset_list a", "dataset"),
        ("--training_mode=multidataset --dataset_list a longer_alphabet", "tokenizer"),
        ("--training_mode=multicontext --multicontext_datasets a longer", "1,200"),
        ("--dataset a --block_size 400", "block_size"),
        ("--dataset odd", "odd"),
        ("--dataset beyond", "beyond"),
        ("--dataset no_val", "val.bin"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_written(home, capsys, line, key):
    sets = home / "home" / "datasets"
    write_set(sets / "longer", tokens=(1300, 400))
    write_set(sets / "longer_alphabet", alphabet=ALPHABET + "XYZ")
    for name in ("odd", "beyond", "no_val"):
        write_set(sets / name)
    with open(sets / "odd/train.bin", "ab") as file:
        file.write(b"x")
    ids = np.fromfile(sets / "beyond/train.bin", np.uint16)
    ids[700] = 99
    ids.tofile(sets / "beyond/train.bin")
    (sets / "no_val/val.bin").write_bytes(b"")
    small = SMALL.replace("--block_size 16", "") if "block_size" in line else SMALL
    folder = "" if "--out_dir" in line else "--out_dir out/x"
    assert key in error_line(capsys, run, f"{line} {small} {folder}")
    assert not (home / "out").exists()


@pytest.fixture
def gpt2(home):
    """A folder with a GPT-2 of transformers that has positions for 32 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": len(ALPHABET)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(home / "gpt2")
    return home / "gpt2"


def test_a_table_of_positions_limits_samples_and_block_size(home, gpt2, capsys):
    line = f"--init_from={gpt2} --dataset=a --out_dir=out/f {UNSIZED}"
    assert "block_size" in error_line(capsys, run, line.replace("--block_size 16", "--block_size 33"))
    assert "sample_prompt" in error_line(capsys, run, line, "--set", f"sample_prompt={'ab' * 16}")
    assert not (home / "out").exists()
    run(line.replace("--max_sample_tokens 4", "--max_sample_tokens 256"))
    assert len(samples(home / "out/f")[0]["text"]) == 32
    words = ["--checkpoint", "out/f", "--samples", "1", "--prompt"]
    assert len(evaluation.main([*words, "ab"])["samples"][0]) == 32
    assert "40 tokens" in error_line(capsys, evaluation.main, [*words, "ab" * 20])


def test_a_failure_in_generation_is_one_line_of_eval(home, capsys, monkeypatch):
    from models.gpt.network import GPT

    def generate(*arguments, **options):
        raise IndexError("index out of range")

    run(f"--dataset a {SMALL} --out_dir out/a")
    monkeypatch.setattr(GPT, "generate", generate)
    line = error_line(capsys, evaluation.main, ["--checkpoint", "out/a", "--samples", "1"])
    assert "--samples" in line and "(index out of range)" in line


def test_other_processes_take_the_same_samples_or_are_refused(home, capsys):
    """The manifests are changed as if two processes had written them."""
    run(f"--dataset a {SMALL} --out_dir out/a")
    for step in (3, 6):
        file = home / f"out/a/checkpoint-{step}/manifest.json"
        assert (content := json.loads(file.read_text()))["world_size"] == 1
        file.write_text(json.dumps(content | {"world_size": 2}))
    run("--init_from=resume --out_dir=out/a")  # nothing is left to train
    shutil.rmtree("out/a/checkpoint-6")
    before = sorted((home / "out/a").rglob("*"))
    line = error_line(capsys, run, "--init_from=resume --out_dir=out/a")
    assert "checkpoint-3" in line and "2 processes" in line and "global_batch_size 8" in line
    assert sorted((home / "out/a").rglob("*")) == before
    run("--init_from=resume --out_dir=out/a --global_batch_size 8")
    assert (home / "out/a/checkpoint-6").is_dir()


@pytest.mark.parametrize("newest_is_torn", [False, True])
def test_prev_run_of_a_run_that_was_killed(home, capsys, newest_is_torn):
    """Weights and optimizer come from the newest complete checkpoint."""
    run(f"--dataset a {SMALL} --out_dir out/a")
    (home / "out/a/model.safetensors").unlink()
    (home / "out/a/config.json").unlink()
    if newest_is_torn:
        (home / "out/a/checkpoint-6/optimizer.json").unlink()
    after = run(f"--init_from=prev_run --prev_run_ckpt out/a --dataset b {ONE_STEP} --out_dir out/b --learning_rate 0")
    step = 3 if newest_is_torn else 6
    assert has_weights_of(after, home / f"out/a/checkpoint-{step}") and optimizer_steps(after) == {step + 1}
    assert f"out/a/checkpoint-{step}" in capsys.readouterr().out


def test_load_pretrain_of_a_run_that_was_killed(home, capsys):
    run(f"--dataset a {SMALL} --out_dir out/a")
    (home / "out/a/model.safetensors").unlink()
    settings = ("--set", "load_pretrain=true", "model_name_or_path=out/a")
    after = run(f"--dataset b {SMALL} --out_dir out/b --learning_rate 0", *settings)
    assert has_weights_of(after, home / "out/a/checkpoint-6") and "out/a/checkpoint-6" in capsys.readouterr().out


@pytest.mark.parametrize("earlier", [True, False])
def test_an_adapters_optimizer_cannot_be_taken_over(home, capsys, earlier):
    adapter = ("--set", "lora_enable=true", "lora_task_type=CAUSAL_LM")
    run(f"--dataset a {SMALL} --out_dir out/a", *(adapter if earlier else ()))
    line = f"--init_from=prev_run --prev_run_ckpt out/a --dataset a {UNSIZED} --out_dir out/b"
    message = error_line(capsys, run, line, *(() if earlier else adapter))
    assert ("checkpoint-6 trained an adapter" if earlier else "this run trains an adapter") in message
    assert "load_optimizer=false" in message and not (home / "out/b").exists()
    run(line, *(("--set",) if earlier else adapter), "load_optimizer=false")
