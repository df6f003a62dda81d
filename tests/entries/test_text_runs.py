"""Language models through the command line, in the words of the fourth document."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from text_sets import ALPHABET, SMALL, metrics, run, same_weights, write_set

import eval as evaluation

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

MUTE = ("separate", "multicontext")  # several tokenizers: no samples


def line_of(mode):
    """The mode's command line, small; where there are several tokenizers without samples."""
    return f"{MODES[mode]} {SMALL.replace('--max_sample_tokens 4', '') if mode in MUTE else SMALL}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Data sets a and b found by name; runs go to the working folder's out/."""
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_set(tmp_path / "home" / "datasets" / name, seed)
    return tmp_path


def out(home, name):
    return home / "out" / name


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_is_the_uninterrupted_one(home, mode):
    """Weights, log and samples, with dropout, from a checkpoint in mid-run; only the folder is named again."""
    whole = run(f"{line_of(mode)} --dropout 0.2 --decay_lr --out_dir out/whole")
    lines = (out(home, "whole") / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(out(home, "whole") / "checkpoint-6")
    (out(home, "whole") / "model.safetensors").unlink()
    resumed = run("--init_from=resume --out_dir=out/whole")
    assert resumed.state.global_step == 6 and same_weights(whole, resumed)

    def steady(line):
        record = json.loads(line)
        return {key: value for key, value in record.items() if not key.endswith(("second", "_ms", "_mb", "runtime"))}

    again = (out(home, "whole") / "metrics.jsonl").read_text().splitlines()
    kept = [steady(line) for line in lines if "train_loss" not in line]
    assert kept == [steady(line) for line in again if "train_loss" not in line]
    if mode not in MUTE:
        samples = (out(home, "whole") / "samples.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in samples] == sorted({json.loads(line)["step"] for line in samples})


def test_other_data_under_the_same_name_is_no_resumed_run(home, capsys):
    run(f"--dataset a {SMALL} --out_dir out/a")
    shutil.rmtree(out(home, "a") / "checkpoint-6")
    shutil.rmtree(home / "home/datasets/a")
    write_set(home / "home/datasets/a", seed=5)
    with pytest.raises(SystemExit) as left:
        run("--init_from=resume --out_dir=out/a")
    assert left.value.code == 2 and "the data is not what" in capsys.readouterr().err


def test_what_is_logged(home):
    trainer = run(f"--dataset a {SMALL} --out_dir out/a")
    folder = out(home, "a")
    assert metrics(folder, "tokens") == {step: step * 4 * 16 for step in range(1, 7)}
    rates, samples = metrics(folder, "tokens_per_second"), metrics(folder, "samples_per_second")
    assert all(rates[step] == pytest.approx(16 * samples[step], rel=1e-3) for step in rates) and rates
    loss, chance = metrics(folder, "loss"), metrics(folder, "better_than_chance")
    assert all(chance[step] == pytest.approx(len(ALPHABET) / math.exp(loss[step]), rel=1e-6) for step in loss)
    evaluated = metrics(folder, "eval_loss")
    assert list(evaluated) == [3, 6] and metrics(folder, "eval_perplexity")[6] == pytest.approx(math.exp(evaluated[6]))
    assert metrics(folder, "eval_bits_per_byte")[6] == pytest.approx(evaluated[6] / math.log(2))
    assert len(trainer.eval_dataset) == 2 * 4  # eval_iters batches
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["step"] == 3 and len(samples[0]["text"]) == 1 + 4


@pytest.mark.keys("sample_tokens", "sample_prompt", "sample_count", "sample_temperature", "sample_top_k")
def test_sample_keys(home):
    """Each key of the samples, seen in what is written: sample_tokens, sample_prompt, sample_count, sample_top_k,
    sample_temperature."""

    def texts(name, **keys):
        settings = [f"{key}={value}" for key, value in keys.items()]
        run(f"--dataset a {SMALL.replace('--max_sample_tokens 4', '')} --out_dir out/{name} --set", *settings)
        path = out(home, name) / "samples.jsonl"
        return [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.exists() else None

    assert texts("none", sample_tokens=0) is None
    some = texts("some", sample_tokens=30, sample_prompt="abc", sample_count=2, sample_temperature=2.0, sample_top_k=10)
    assert all(len(text) == 33 and text.startswith("abc") for text in some) and some[0] != some[1]
    coldest = texts("cold", sample_tokens=30, sample_prompt="abc", sample_temperature=0)
    greedy = texts("greedy", sample_tokens=30, sample_prompt="abc", sample_temperature=1.0, sample_top_k=1)
    assert coldest == greedy and coldest[0] != some[0]


def test_a_text_of_one_line_has_samples_too(home, capsys):
    """The prompt that nobody set is a line's end, which its vocabulary lacks; one that was set is held to."""
    write_set(home / "home/datasets/line", alphabet="abcdefgh")
    run(f"--dataset line {SMALL} --out_dir out/line")
    samples = [json.loads(line)["text"] for line in (out(home, "line") / "samples.jsonl").read_text().splitlines()]
    assert all(text.startswith("a") and len(text) == 5 for text in samples)
    with pytest.raises(SystemExit) as left:
        run(f"--dataset line {SMALL} --sample_start_tokens Z --out_dir out/z")
    assert left.value.code == 2 and "cannot be read by the tokenizer" in capsys.readouterr().err


def test_batch_and_block_size_and_log_interval(home):
    trainer = run(f"--dataset a {SMALL} --out_dir out/a".replace("--log_interval 1", "--log_interval 2"))
    assert list(metrics(out(home, "a"), "loss")) == [2, 4, 6]
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (4, 16)
    assert torch.equal(batch["input_ids"][:, 1:], batch["shift_labels"][:, :-1])


def test_losses_of_each_set_and_their_mean(home):
    run(f"{MODES['multidataset']} {SMALL} --out_dir out/m")
    each = [metrics(out(home, "m"), f"eval_{name}_loss") for name in "ab"]
    mean = metrics(out(home, "m"), "eval_loss")
    assert list(mean) == [3, 6]
    assert mean[6] == pytest.approx(sum(losses[6] for losses in each) / 2) and each[0][6] != each[1][6]


def test_losses_of_each_context(home):
    run(f"{line_of('multicontext')} --out_dir out/c")
    folder = out(home, "c")
    for prefix in ("", "eval_"):
        loss, each = metrics(folder, f"{prefix}loss"), [metrics(folder, f"{prefix}loss_{name}") for name in "ab"]
        assert loss[6] == pytest.approx((each[0][6] + each[1][6]) / 2, rel=1e-4)


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
        logits = [trainer.model(input_ids=each[None, :-1])["logits"][0, :, : len(ALPHABET)] for each in windows]
    losses = [torch.nn.functional.cross_entropy(each, window[1:]) for each, window in zip(logits, windows, strict=True)]
    assert scores["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["bits_per_byte"] == pytest.approx(scores["loss"] / math.log(2))
    assert len(scores["samples"]) == 2 and all(text.startswith("ab") and len(text) == 7 for text in scores["samples"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == scores["loss"]
    for words in ("--episodes 50", "--prompt ab", "--seed 3", "--video"):  # the default's value is said all the same
        with pytest.raises(SystemExit) as left:
            evaluation.main(["--checkpoint", "out/a", *words.split()])
        assert left.value.code == 2 and f"`{words.split()[0]} " in (said := capsys.readouterr().err), said


@pytest.mark.keys("load_optimizer")
def test_prev_run_takes_weights_and_optimizer_and_starts_at_step_0(home):
    """`load_optimizer` and `is_pretrained`, in one word."""
    before = run(f"--dataset a {SMALL} --out_dir out/a")
    words = SMALL.replace("--n_layer 1 --n_head 2 --n_embd 16 ", "")  # the network is the earlier run's
    after = run(
        f"--init_from=prev_run --prev_run_ckpt out/a --dataset b {words} --max_iters 1 --out_dir out/b".replace(
            "--max_iters 6 --warmup_iters 2", "--warmup_iters 0"
        )
        + " --learning_rate 0"
    )
    assert after.state.global_step == 1 and same_weights(before, after)  # at rate 0 nothing moves
    steps = {int(each["step"]) for each in after.optimizer.state_dict()["state"].values()}
    assert steps == {7}


def test_decay_lr_and_its_numbers(home):
    """nanoGPT's course by hand: a linear warm-up, then half a cosine down to min_lr at lr_decay_iters."""
    run(f"--dataset a {SMALL} --out_dir out/d --decay_lr --lr_decay_iters 5 --min_lr 2e-4 --learning_rate 1e-3")
    rates = metrics(out(home, "d"), "learning_rate")

    def by_hand(done):
        if done < 2:
            return 1e-3 * done / 2
        share = min(1, (done - 2) / (5 - 2))
        return 2e-4 + 0.5 * (1 + math.cos(math.pi * share)) * (1e-3 - 2e-4)

    assert [rates[step] for step in range(1, 7)] == pytest.approx([by_hand(done) for done in range(6)], rel=1e-6)
    run(f"--dataset a {SMALL} --out_dir out/n")
    flat = metrics(out(home, "n"), "learning_rate")
    assert [flat[step] for step in range(1, 7)] == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def test_weight_decay_grad_clip_and_betas_act(home):
    whole = run(f"--dataset a {SMALL} --out_dir out/0")
    groups = whole.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0} and groups[0]["betas"] == (0.9, 0.99)
    for number, words in enumerate(("--weight_decay 0", "--grad_clip 0.01", "--beta1 0.5", "--beta2 0.5", "--seed 7")):
        assert not same_weights(whole, run(f"--dataset a {SMALL} --out_dir out/x{number} {words}")), words


def test_from_gpt2_of_any_size(home):
    """A tiny GPT-2 of transformers on disk: the first evaluation sees its very loss, cropped to the block size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 40}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    theirs.save_pretrained(home / "tiny")
    words = SMALL.replace("--n_layer 1 --n_head 2 --n_embd 16 ", "")
    trainer = run(f"--init_from=gpt2 --gpt2_type {home / 'tiny'} --dataset=a {words} --out_dir=out/f --learning_rate 0")
    batch = next(iter(trainer.get_eval_dataloader()))
    logits = theirs(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    trainer.model.eval()
    with torch.no_grad():
        found = trainer.model(**{key: batch[key] for key in ("input_ids", "shift_labels", "labels")})["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_from_any_causal_language_model(home):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=len(ALPHABET), max_position_embeddings=32, **sizes))
    theirs.save_pretrained(home / "llama")
    words = SMALL.replace("--n_layer 1 --n_head 2 --n_embd 16 ", "")
    trainer = run(f"--init_from={home / 'llama'} --dataset=a {words} --out_dir=out/f --learning_rate 0")
    assert type(trainer.model).__name__ == "LlamaForCausalLM"
    ours = trainer.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--dataset c", "prepare.py --dataset c"),
        ("--init_from=resume --out_dir=out/none", "out/none"),
        ("--training_mode=multidataset --dataset_list a b --dataset_sampling_probs 0.5 0.6", "sums to 1.1"),
        ("--training_mode=multidataset --dataset_list a", "at least two data sets"),
        ("--training_mode=multidataset --dataset_list a longer_alphabet", "tokenizer"),
        ("--training_mode=multicontext --multicontext_datasets a longer", "1,200"),
        ("--dataset a --block_size 400", "block_size"),
        ("--dataset odd", "odd"),
        ("--dataset beyond", "beyond"),
        ("--dataset no_val", "val.bin"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_written(home, capsys, line, says):
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
    small = " ".join(word for word in SMALL.replace("--block_size 16", "").split()) if "block_size" in line else SMALL
    where = "" if "--out_dir" in line else " --out_dir out/x"
    with pytest.raises(SystemExit) as left:
        run(f"{line} {small}{where}")
    errors = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and says in errors[0], errors
    assert not (home / "out").exists()


UNSIZED = SMALL.replace("--n_layer 1 --n_head 2 --n_embd 16 ", "")  # the network is another's


def refused(capsys, call, *arguments):
    """The one error line of a call that leaves with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        call(*arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1, errors
    return errors[0]


@pytest.fixture
def gpt2(home):
    """A folder with a GPT-2 of transformers that has positions for 32 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": len(ALPHABET)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(home / "gpt2")
    return home / "gpt2"


def test_samples_and_block_size_of_a_foreign_model_end_with_its_positions(home, gpt2, capsys):
    line = f"--init_from={gpt2} --dataset=a --out_dir=out/f {UNSIZED}"
    assert "--block_size 16" in line and "--max_sample_tokens 4" in line
    long = line.replace("--block_size 16", "--block_size 33")
    assert "has positions for 32 tokens only; set block_size to 32 or less" in refused(capsys, run, long)
    said = refused(capsys, run, line, "--set", f"sample_prompt={'ab' * 16}")
    assert "has 32 tokens but the model has positions for 32 only" in said
    assert not (home / "out").exists()
    run(line.replace("--max_sample_tokens 4", "--max_sample_tokens 256"))
    samples = (out(home, "f") / "samples.jsonl").read_text().splitlines()
    assert len(json.loads(samples[0])["text"]) == 32
    asked = ["--checkpoint", "out/f", "--samples", "1", "--prompt"]
    assert len(evaluation.main([*asked, "ab"])["samples"][0]) == 32
    assert "has 40 tokens" in refused(capsys, evaluation.main, [*asked, "ab" * 20])


def test_a_model_that_cannot_write_is_one_line_of_eval(home, capsys, monkeypatch):
    from models.gpt.network import GPT

    def generate(*arguments, **options):
        raise IndexError("index out of range")

    run(f"--dataset a {SMALL} --out_dir out/a")
    monkeypatch.setattr(GPT, "generate", generate)
    said = refused(capsys, evaluation.main, ["--checkpoint", "out/a", "--samples", "1"])
    assert "--samples: this model cannot write (index out of range)" in said


def test_other_processes_take_the_same_samples_or_are_refused(home, capsys):
    """The checkpoint's own count, here as two processes would have left it."""
    run(f"--dataset a {SMALL} --out_dir out/a")
    manifests = {step: out(home, "a") / f"checkpoint-{step}/manifest.json" for step in (3, 6)}
    assert json.loads(manifests[3].read_text())["world_size"] == 1
    for file in manifests.values():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"world_size": 2}))
    run("--init_from=resume --out_dir=out/a")  # nothing is left to train: nothing could go another way
    shutil.rmtree(manifests[6].parent)
    before = sorted(out(home, "a").rglob("*"))
    said = refused(capsys, run, "--init_from=resume --out_dir=out/a")
    assert "checkpoint-3 was trained with 4 per device × 2 processes = 8" in said and "set global_batch_size 8" in said
    assert sorted(out(home, "a").rglob("*")) == before
    run("--init_from=resume --out_dir=out/a --global_batch_size 8")
    assert (out(home, "a") / "checkpoint-6").is_dir()


@pytest.mark.parametrize("newest_is_torn", [False, True])
def test_prev_run_of_a_run_that_was_killed(home, capsys, newest_is_torn):
    """Weights and optimizer of one and the same checkpoint: the newest that is whole."""
    run(f"--dataset a {SMALL} --out_dir out/a")
    (out(home, "a") / "model.safetensors").unlink()
    (out(home, "a") / "config.json").unlink()
    if newest_is_torn:
        (out(home, "a") / "checkpoint-6/optimizer.json").unlink()
    capsys.readouterr()
    words = UNSIZED.replace("--max_iters 6 --warmup_iters 2", "--warmup_iters 0 --max_iters 1")
    after = run(f"--init_from=prev_run --prev_run_ckpt out/a --dataset b {words} --out_dir out/b --learning_rate 0")
    step = 3 if newest_is_torn else 6
    stored = load_file(out(home, "a") / f"checkpoint-{step}/model.safetensors")
    assert all(torch.equal(after.model.state_dict()[name], value) for name, value in stored.items())
    assert {int(each["step"]) for each in after.optimizer.state_dict()["state"].values()} == {step + 1}
    assert f"weights of out/a/checkpoint-{step}" in capsys.readouterr().out


def test_load_pretrain_of_a_run_that_was_killed(home, capsys):
    run(f"--dataset a {SMALL} --out_dir out/a")
    (out(home, "a") / "model.safetensors").unlink()
    run(f"--dataset b {SMALL} --out_dir out/b", "--set", "load_pretrain=true", "model_name_or_path=out/a")
    assert "weights from out/a/checkpoint-6" in capsys.readouterr().out


@pytest.mark.parametrize("earlier", [True, False])
def test_an_adapters_optimizer_cannot_be_taken_over(home, capsys, earlier):
    adapter = ("--set", "lora_enable=true", "lora_task_type=CAUSAL_LM")
    run(f"--dataset a {SMALL} --out_dir out/a", *(adapter if earlier else ()))
    line = f"--init_from=prev_run --prev_run_ckpt out/a --dataset a {UNSIZED} --out_dir out/b"
    said = refused(capsys, run, line, *(() if earlier else adapter))
    assert ("checkpoint-6 trained an adapter" if earlier else "this run trains an adapter") in said
    assert "--set load_optimizer=false" in said and not out(home, "b").exists()
    run(line, *(("--set",) if earlier else adapter), "load_optimizer=false")


def test_eval_says_that_the_data_is_another(home, capsys):
    run(f"--dataset a {SMALL} --out_dir out/a")
    evaluation.main(["--checkpoint", "out/a"])
    assert "warning: " not in capsys.readouterr().err
    shutil.rmtree(home / "home/datasets/a")
    write_set(home / "home/datasets/a", seed=5)
    assert evaluation.main(["--checkpoint", "out/a"])["loss"] > 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "the data is not what out/a was trained with: data[0].train[1] was" in lines[0]
