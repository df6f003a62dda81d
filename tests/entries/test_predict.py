"""predict.py on small trained checkpoints: against the network called by hand, transformers and eval.py."""

import io
import json
import shutil
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from demonstration_files import write_act_episode
from small_runs import SmallRuns
from text_sets import ALPHABET, run, write_set

import eval as evaluation
import predict
import train

SMALL = (
    "--batch_size 8 --block_size 16 --n_layer 2 --n_head 2 --n_embd 32 --max_iters 60 --warmup_iters 2 "
    "--learning_rate 0.02 --eval_interval 60 --eval_iters 1 --max_sample_tokens 0"
)
PROMPTS = ["abc", "", "p\n", "abcdefghijklmnopabcdefgh", "k", "hello"]  # the fourth is longer than the block


def refused(capsys, *words):
    """The one error line of a call that leaves with exit code 2 and prints nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        predict.main([*map(str, words)])
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and output.out == "", output
    return errors[0]


def predicted(*words):
    """Lines of the file that predict.py writes."""
    output = words[0].parent / "predicted.jsonl"
    predict.main(["--input", *map(str, words), "--output", str(output)])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- language models ----


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A GPT's run on characters, each of which is one to three places after the one before."""
    home = tmp_path_factory.mktemp("gpt")
    write_set(home / "a")
    run(f"--dataset {home / 'a'} {SMALL} --out_dir {home / 'out'}", "--set", f"cache_dir={home / 'cache'}")
    shutil.rmtree(home / "a")  # the checkpoint alone is enough
    return home / "out"


def by_hand(folder, prompt, count):
    """The most probable character each time, of the network on the last 16 of them."""
    from models.gpt import load

    model, symbols = load(folder), sorted(ALPHABET)
    ids = [symbols.index(letter) for letter in prompt]
    for _ in range(count):
        ids.append(model(torch.tensor([ids[-16:]]))["logits"][0, -1].argmax().item())
    return "".join(symbols[each] for each in ids[len(prompt) :])


def test_continuations_are_the_most_probable_ones_at_any_batch_size(gpt, tmp_path):
    records = [{"id": number, "prompt": prompt} for number, prompt in enumerate(PROMPTS) if prompt]
    file = lines(tmp_path / "in.jsonl", records)
    expected = [
        record
        | {"prediction": by_hand(gpt, record["prompt"], 20), "finish_reason": "length", "source": f"in.jsonl:{n}"}
        for n, record in enumerate(records, 1)
    ]
    assert len({record["prediction"] for record in expected}) == 5
    for size in (1, 2, 64):
        words = ["--checkpoint", gpt, "--max_new_tokens", 20, "--batch_size", size]
        assert predicted(file, *words) == expected


def test_plain_lines_of_files_folders_and_standard_input(gpt, tmp_path, capsys, monkeypatch):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/b.txt").write_bytes(b"abc\r\n\nk\n")
    lines(tmp_path / "in/sub/a.jsonl", [{"text": "abc"}])
    lines(tmp_path / "in/.hidden.jsonl", [{"text": "abc"}])
    (tmp_path / "in/other.csv").write_text("1\n")
    words = ["--checkpoint", gpt, "--tokens", 3]
    records = predicted(tmp_path / "in", *words)
    assert [(each["source"], each["text"]) for each in records] == [
        ("b.txt:1", "abc"),
        ("b.txt:3", "k"),
        ("sub/a.jsonl:1", "abc"),
    ]
    assert "2 other files" in capsys.readouterr().err
    for content in (b"abc\nk\n", b'{"text": "abc"}\n{"text": "k"}\n'):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        predict.main(["--input", "-", *map(str, words)])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["prediction"] for each in found] == [each["prediction"] for each in records[:2]]


BAD = [
    (b'{"prompt": "abc"', 2, "not JSON"),
    (b'{"prompt": "Zebra"}', 3, "cannot be read by the tokenizer"),
    (b"\xff\xfe", 5, "not UTF-8"),
    (b'{"question": "abc"}', 6, "its keys: question"),
    (b'{"prompt": 3}', 7, "`prompt` is not text"),
    (b'{"prompt": "a", "prediction": "b"}', 8, "`prediction`"),
    (b'{"messages": [{"role": "user", "content": "a"}]}', 9, "chat template"),
    (b'["abc"]', 10, "not a JSON object"),
]


def test_bad_lines_are_named_and_the_others_written(gpt, tmp_path, capsys):
    good, bad = b'{"prompt": "abc"}', [line for line, _, _ in BAD]
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\n".join([good, *bad[:2], good, *bad[2:], good]) + b"\n")
    words = ["--checkpoint", gpt, "--tokens", 2]
    assert [record["source"] for record in predicted(file, *words)] == ["in.jsonl:1", "in.jsonl:4", "in.jsonl:11"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == len(BAD) + 1 and "3 inputs predicted; 8 with errors left out" in errors[-1]
    for line, (_, number, reason) in zip(errors, BAD, strict=False):
        assert line.startswith(f"error: {file}:{number}: ") and reason in line
    output = tmp_path / "predicted.jsonl"
    output.write_text("before")
    for target in (["--output", output], []):
        assert f"{file}:2: " in refused(capsys, "--input", file, *words, "--strict", *target)
    assert output.read_text() == "before" and sorted(tmp_path.iterdir()) == [file, output]
    file.write_bytes(b"\n".join(bad))
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        predict.main(["--input", str(file), *map(str, words), "--output", str(output)])
    assert left.value.code == 2 and "nothing is written" in capsys.readouterr().err.splitlines()[-1]
    assert output.read_text() == "before"


def test_a_damaged_file_does_not_stop_the_others(gpt, tmp_path, capsys):
    import gzip

    folder = tmp_path / "in"
    lines(folder / "z.jsonl", [{"prompt": "abc"}])
    whole = gzip.compress(b'{"prompt": "abc"}\n' * 9)
    (folder / "a.jsonl.gz").write_bytes(whole)
    (folder / "b.jsonl.gz").write_bytes(whole[: len(whole) - 12])
    (folder / "c.jsonl").write_bytes(b"")
    records = predicted(folder, "--checkpoint", gpt, "--tokens", 1)
    assert [record["source"] for record in records if record["source"][0] != "b"] == [
        *(f"a.jsonl.gz:{number}" for number in range(1, 10)),
        "z.jsonl:1",
    ]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and str(folder / "b.jsonl.gz") in errors[0] and str(folder / "c.jsonl") in errors[1]


def test_samples_are_those_of_eval(gpt, tmp_path, capsys):
    """The same prompt, seed and settings; eval.py shows prompt and continuation as one text."""
    file = lines(tmp_path / "in.jsonl", [{"prompt": "k"}, {"prompt": "abc"}])
    settings = ["--tokens", 12, "--temperature", 1.5, "--top_k", 9, "--samples", 3, "--seed", 5]
    records = predicted(file, "--checkpoint", gpt, *settings, "--batch_size", 1)
    assert records == predicted(file, "--checkpoint", gpt, *settings, "--batch_size", 7)
    assert [(each["prompt"], each["sample"]) for each in records] == [(p, n) for p in ("k", "abc") for n in range(3)]
    assert len({each["prediction"] for each in records}) == 6
    processor = SimpleNamespace(
        tokenizer=predict.processor_class(saved(gpt))
        .from_pretrained(gpt, saved(gpt).dataset.config, saved(gpt).process)
        .tokenizer
    )
    asked = evaluation.EvalArguments(tokens=12, temperature=1.5, top_k=9, samples=3, seed=5, prompt="abc")
    model = evaluation.load_model(gpt, saved(gpt), "cpu")
    texts = evaluation.written_samples(asked, model, processor)
    assert texts == ["abc" + each["prediction"] for each in records[3:]]
    other = predicted(file, "--checkpoint", gpt, *settings[:-1], 6)
    assert all(a["prediction"] != b["prediction"] for a, b in zip(records, other, strict=True))


def saved(folder):
    return evaluation.checkpoint_run(str(folder))[1]


def test_text_refusals(gpt, tmp_path, capsys):
    file = lines(tmp_path / "d/in.jsonl", [{"prompt": "abc"}])
    before = file.read_bytes()
    words = ["--checkpoint", gpt, "--input", file]
    (tmp_path / "link.jsonl").symlink_to(file)
    for more, reason in [
        (["--output", file], "is an input"),
        (["--output", tmp_path / "link.jsonl"], "is an input"),
        (["--output", tmp_path / "none/x.jsonl"], "cannot be written"),
        (["--outptu", "x"], "did you mean `--output`?"),
        (["--top_k", 3], "`--top_k 3` has no effect: temperature 0"),
        (["--samples", 1], "`--samples 1` has no effect"),
        (["--token", "secret"], "`--token secret` has no effect: no --serve"),
        (["--serve", 0], "text data has no policy to serve"),
        (["--batch_size", 0], "must be at least 1"),
        (["--device", "foo"], "`--device foo` cannot be used"),
    ]:
        assert reason in refused(capsys, *words, *more)
    folder = ["--checkpoint", gpt, "--input", tmp_path / "d", "--output", tmp_path / "d/out.jsonl"]
    assert "a second run would read it" in refused(capsys, *folder)
    (tmp_path / "empty").mkdir()
    others = [("no", "does not exist"), ("empty", "has no file"), (gpt / "config.json", "is none of")]
    for given, reason in [(tmp_path / name, reason) for name, reason in others]:
        assert reason in refused(capsys, "--checkpoint", gpt, "--input", given)
    assert "name what to predict on" in refused(capsys, "--checkpoint", gpt)
    assert "name the checkpoint" in refused(capsys, "--input", file)
    assert file.read_bytes() == before and len(list(tmp_path.rglob("*"))) == 4
    bare = tmp_path / "bare"
    shutil.copytree(gpt, bare, ignore=shutil.ignore_patterns("token*", "checkpoint-*"))
    assert f"{bare} holds no tokenizer" in refused(capsys, "--checkpoint", bare, "--input", file)


CHATML = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANSWERS = {"How many legs has a spider?": "Eight legs.", "And an ant?": "Six."}


def asked(question):
    return {"messages": [{"role": "user", "content": question}]}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A Llama that has learned two answers by heart: its base ends texts with <|endoftext|>, its template turns with
    <|im_end|>."""
    from data.text.tokenizers import train_bpe

    home = tmp_path_factory.mktemp("chat")
    tokenizer = train_bpe([*ANSWERS, *ANSWERS.values()] * 4, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(home / "tokenizer")
    records = [
        {"messages": [*asked(question)["messages"], {"role": "assistant", "content": answer}]}
        for question, answer in ANSWERS.items()
    ]
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    settings = {"dataset.path": lines(home / "records.jsonl", records), "dataset.tokenizer": home / "tokenizer"}
    settings |= {"dataset.block_size": 64, "dataset.eval_fraction": 0, "model.config": json.dumps(config)}
    settings |= {"cache_dir": home / "cache", "sample_tokens": 0, "dataset.packing": "false", "logging_steps": 20}
    words = [
        "--task_name",
        "records",
        "--training_config",
        home / "run.yaml",
        "--output_dir",
        home / "out",
        "--max_steps",
        60,
    ]
    words += ["--learning_rate", 0.02, "--per_device_train_batch_size", 2, "--report_to", "none"]
    (home / "run.yaml").write_text("save_strategy: 'no'\nlr_scheduler_type: constant\neval_strategy: 'no'\n")
    train.main([*map(str, words), "--set", *(f"{name}={value}" for name, value in settings.items())])
    shutil.rmtree(home / "tokenizer")
    return home / "out"


@pytest.mark.slow
def test_chats_are_answered_with_the_saved_template(chat, tmp_path):
    """The learned answers, up to the end of the turn; and what transformers generates from the same folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = list(ANSWERS)
    history = asked(questions[0])["messages"] + [{"role": "assistant", "content": "Eight legs."}]
    history += [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "the reference"}]
    tools = {"tools": [{"type": "function", "function": {"name": "count"}}]}
    records = [asked(questions[0]), {"prompt": questions[1], "id": 7}, {"messages": history}]
    records += [asked(questions[1]) | tools, {"text": "Eight"}]
    file = lines(tmp_path / "in.jsonl", records)
    found = predicted(file, "--checkpoint", chat, "--tokens", 12, "--batch_size", 5)
    assert [(each["prediction"], each["finish_reason"]) for each in found[:2]] == [
        ("Eight legs.", "stop"),
        ("Six.", "stop"),
    ]
    assert [{key: each[key] for key in record} for each, record in zip(found, records, strict=True)] == records
    assert found == predicted(file, "--checkpoint", chat, "--tokens", 12, "--batch_size", 1)
    tokenizer, model = AutoTokenizer.from_pretrained(chat), AutoModelForCausalLM.from_pretrained(chat)
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    rendered = [
        tokenizer.apply_chat_template(history[:-1], **options),
        tokenizer.apply_chat_template(records[3]["messages"], **tools, **options),
        tokenizer("Eight", return_tensors="pt"),
    ]
    end = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for each, inputs in zip(found[2:], rendered, strict=True):
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)[0]
        new = ids[inputs["input_ids"].shape[1] :].tolist()
        stops = new[-1] in end
        assert each["prediction"] == tokenizer.decode(new[:-1] if stops else new)
        assert each["finish_reason"] == ("stop" if stops else "length")


# ---- policies ----


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A perceptron on states, trained for a few steps; the recordings stay for prediction."""
    runs = SmallRuns(tmp_path_factory.mktemp("policy"))
    runs()
    shutil.rmtree(runs.folder / "cache")
    return runs.folder


def chunks_by_hand(folder, states):
    """(T, C, A): zscore by statistics.json, the network's two layers as matrices, and back."""
    from safetensors.torch import load_file

    weights = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    state, action = (json.loads((folder / "statistics.json").read_text())[name] for name in ("state", "action"))
    hidden = (states - state["mean"]) / np.maximum(state["std"], 0.01)
    hidden = np.maximum(hidden @ weights["trunk.0.weight"].T + weights["trunk.0.bias"], 0)
    chunks = (hidden @ weights["head.weight"].T + weights["head.bias"]).reshape(len(states), 3, -1)
    return chunks * np.maximum(action["std"], 0.01) + action["mean"]


def actions(path):
    """Recording's name -> predicted chunks."""
    found = {}
    with h5py.File(path) as root:
        root.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_chunks_for_every_recorded_observation(policy, tmp_path):
    """Of a folder, of one file, and at any batch size; actions are not read."""
    episodes = policy / "episodes"
    file = tmp_path / "sub/no_actions.h5"
    written = write_act_episode(file, steps=7, seed=9, replace={"action": None})
    shutil.copy(episodes / "episode_1.hdf5", tmp_path)
    words = ["--checkpoint", str(policy / "out"), "--output", str(tmp_path / "out.h5df")]
    results = []
    for size in (1, 5, 64):
        predict.main(["--input", str(tmp_path), *words, "--batch_size", str(size)])
        results.append(actions(tmp_path / "out.h5df"))
    assert list(results[0]) == ["episode_1.hdf5/actions", "sub/no_actions.h5/actions"]
    with h5py.File(episodes / "episode_1.hdf5") as root:
        states = [root["observations/qpos"][()], written["observations/qpos"]]
    for (name, found), state in zip(results[0].items(), states, strict=True):
        assert found.shape == (len(state), 3, 14) and found.dtype == np.float64
        np.testing.assert_allclose(found, chunks_by_hand(policy / "out", state), rtol=1e-5, atol=1e-5)
        for other in results[1:]:
            np.testing.assert_allclose(other[name], found, rtol=1e-6, atol=1e-6)


def test_standard_input_is_a_recording_too(policy, tmp_path, monkeypatch, capsys):
    content = (policy / "episodes/episode_0.hdf5").read_bytes()
    words = ["--checkpoint", str(policy / "out"), "--input", "-", "--output", str(tmp_path / "out.h5")]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    predict.main(words)
    with h5py.File(policy / "episodes/episode_0.hdf5") as root:
        expected = chunks_by_hand(policy / "out", root["observations/qpos"][()])
    np.testing.assert_allclose(actions(tmp_path / "out.h5")["-/actions"], expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"text")))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        predict.main(words)
    assert "<stdin>" in (said := capsys.readouterr().err) and "/tmp" not in said


def test_a_bad_recording_is_left_out_whole(policy, tmp_path, capsys):
    folder = tmp_path / "in"
    good = write_act_episode(folder / "c.hdf5", steps=5, seed=1)
    whole = good["observations/qpos"]
    late = whole.copy()
    late[3, 2] = np.nan
    write_act_episode(folder / "a.hdf5", steps=5, replace={"observations/qpos": late})
    write_act_episode(folder / "b.hdf5", steps=5, replace={"observations/qpos": None})
    write_act_episode(folder / "d.hdf5", steps=5, replace={"observations/qpos": whole[:, :9]})
    content = (folder / "c.hdf5").read_bytes()
    (folder / "e.hdf5").write_bytes(content[: len(content) // 2])
    output = tmp_path / "out.h5"
    words = ["--checkpoint", str(policy / "out"), "--input", str(folder), "--output", str(output)]
    predict.main([*words, "--batch_size", "2"])
    assert list(actions(output)) == ["c.hdf5/actions"] and actions(output)["c.hdf5/actions"].shape == (5, 3, 14)
    errors = capsys.readouterr().err.splitlines()
    for line, name, reason in zip(
        errors, "abde", ("nan at step 3", "no dataset `obs", "9 dimensions", "cannot"), strict=False
    ):
        assert line.startswith("error: ") and str(folder / f"{name}.hdf5") in line and reason in line, line
    assert len(errors) == 5 and "5 inputs predicted; 4 with errors" in errors[-1]
    output.write_text("before")
    assert "a.hdf5" in refused(capsys, *words, "--strict")
    assert output.read_text() == "before" and sorted(tmp_path.iterdir()) == [folder, output]


def test_policy_refusals(policy, tmp_path, capsys):
    words = ["--checkpoint", policy / "out", "--input", policy / "episodes"]
    assert "name a file to write with --output" in refused(capsys, *words)
    output = ["--output", tmp_path / "x.h5"]
    assert "demonstrations data has no use for it" in refused(capsys, *words, *output, "--temperature", 1)
    served = ["--checkpoint", policy / "out", "--serve", 0]
    assert "`--input" in refused(capsys, *served, "--input", policy) and not list(tmp_path.iterdir())
    assert "--serve reads no files" in refused(capsys, *served, "--batch_size", 16)
    for host in ("0.0.0.0", "::", "example.org", ""):
        assert "set --token" in refused(capsys, *served, "--host", host)
    assert "printable" in refused(capsys, *served, "--token", "")
    assert "printable" in refused(capsys, *served, "--token", "a b\n")
    assert "No such file" in refused(capsys, *served, "--token", "@/no/file")


VISION = """\
history_images_length: 2
model: {name: act, hidden_dim: 16, num_heads: 2, feedforward_dim: 16, encoder_layers: 1, decoder_layers: 1,
  latent_dim: 4, cvae_layers: 1, backbone: resnet10, n_action_steps: 2}
"""


@pytest.mark.slow
def test_images_and_their_history_are_those_of_eval(tmp_path):
    """ACT on two frames of a camera: the plan at step t is what eval.py's policy plans there, and the data set's sample
    at t gives the same chunk."""
    from small_runs import BASE

    runs = SmallRuns(tmp_path)
    shutil.rmtree(tmp_path / "episodes")
    for index in range(2):
        write_act_episode(tmp_path / "episodes" / f"episode_{index}.hdf5", 8, cameras={"top": (40, 56)}, seed=index)
    (tmp_path / "base.yaml").write_text(
        BASE.replace("TASK", str(tmp_path / "task.yaml"))
        .replace("CACHE", str(tmp_path / "cache"))
        .replace("model_config: mlp\n", "model_config: act\n")
        .replace("model: {hidden_dim: 8, hidden_layers: 1}\n", "")
    )
    trainer = runs(VISION, max_steps=2)
    out = tmp_path / "out"
    output = tmp_path / "out.h5"
    for size in (1, 3):
        words = ["--checkpoint", str(out), "--input", str(tmp_path / "episodes"), "--output", str(output)]
        predict.main([*words, "--batch_size", str(size)])
        found = actions(output)
        policy = evaluation.load_policy(str(out), "cpu")
        for index in range(2):
            chunks = found[f"episode_{index}.hdf5/actions"]
            with h5py.File(tmp_path / f"episodes/episode_{index}.hdf5") as root:
                rows = {key: root[key][()] for key in ("observations/qpos", "observations/images/top")}
            policy.reset()
            for step in range(8):
                policy.model.reset()  # plan anew at every step
                action = policy({key: values[step] for key, values in rows.items()})
                np.testing.assert_allclose(chunks[step, 0], action, rtol=1e-5, atol=1e-5)
    model = trainer.model.eval()
    sample = trainer.train_dataset.__getitems__(list(range(8)))
    with torch.no_grad():
        chunk = model(state=sample["state"], images=sample["images"])["actions"].numpy()
    episode = int(sample["episode"][0])
    np.testing.assert_allclose(
        found[f"episode_{episode}.hdf5/actions"], policy.processor.decode_action(chunk), 1e-4, 1e-4
    )
