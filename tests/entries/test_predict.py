"""predict.py on language models: against the network called by hand, transformers and eval.py."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from predictions import lines, predicted, refused
from text_sets import ALPHABET, run, write_set

import eval as evaluation
import predict
import train
from loader.command_line.entry import command_line

SMALL = (
    "--batch_size 8 --block_size 16 --n_layer 2 --n_head 2 --n_embd 32 --max_iters 60 --warmup_iters 2 "
    "--learning_rate 0.02 --eval_interval 60 --eval_iters 1 --max_sample_tokens 0"
)
PROMPTS = ["abc", "", "p\n", "abcdefghijklmnopabcdefgh", "k", "hello"]  # the fourth is longer than the block


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


@pytest.mark.slow
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
    assert predicted(file, "--checkpoint", gpt / "checkpoint-60", "--tokens", 20) == expected


@pytest.mark.slow
def test_plain_lines_of_files_folders_and_standard_input(gpt, tmp_path, capsys, monkeypatch):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/b.txt").write_bytes(b"abc\r\n\nk\n")
    lines(tmp_path / "in/sub/a.jsonl", [{"text": "abc"}])
    lines(tmp_path / "in/.hidden.jsonl", [{"text": "abc"}])
    (tmp_path / "in/other.csv").write_text("1\n")
    lines(tmp_path / "elsewhere/c.jsonl", [{"text": "n"}])
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    words = ["--checkpoint", gpt, "--tokens", 3]
    records = predicted(tmp_path / "in", *words)
    assert [(each["source"], each["text"]) for each in records] == [
        ("b.txt:1", "abc"),
        ("b.txt:3", "k"),
        ("linked/c.jsonl:1", "n"),
        ("sub/a.jsonl:1", "abc"),
    ]
    assert "1 other files" in capsys.readouterr().err
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


@pytest.mark.slow
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
        command_line(predict.main, ["--input", str(file), *map(str, words), "--output", str(output)])
    assert left.value.code == 2 and "nothing is written" in capsys.readouterr().err.splitlines()[-1]
    assert output.read_text() == "before"


@pytest.mark.slow
def test_a_damaged_file_does_not_stop_the_others(gpt, tmp_path, capsys):
    import gzip

    folder = tmp_path / "in"
    lines(folder / "z.jsonl", [{"prompt": "abc"}])
    whole = gzip.compress(b'{"prompt": "abc"}\n' * 9)
    (folder / "a.jsonl.gz").write_bytes(whole)
    (folder / "b.jsonl.gz").write_bytes(whole[: len(whole) - 12])
    (folder / "c.jsonl").write_bytes(b"\n \n")
    records = predicted(folder, "--checkpoint", gpt, "--tokens", 1)
    assert [record["source"] for record in records if record["source"][0] != "b"] == [
        *(f"a.jsonl.gz:{number}" for number in range(1, 10)),
        "z.jsonl:1",
    ]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and str(folder / "b.jsonl.gz") in errors[0] and str(folder / "c.jsonl") in errors[1]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_bar_on_a_terminal_alone(gpt, tmp_path, capsys, monkeypatch):
    file = lines(tmp_path / "in.jsonl", [{"prompt": "abc"}] * 3)
    words = ["--checkpoint", gpt, "--tokens", 1, "--batch_size", 2]
    predicted(file, *words)
    assert capsys.readouterr().err == "3 inputs predicted\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    predicted(file, *words)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_nothing(gpt, tmp_path, monkeypatch, request, number, code):
    """The signal comes after the first batch."""
    from data.text.processor import Processor

    # A shell starts background jobs with SIGINT ignored, and Python then keeps it so.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    whole, calls = Processor.predict, []

    def interrupted(self, model, inputs):
        calls.append(inputs)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return whole(self, model, inputs)

    monkeypatch.setattr(Processor, "predict", interrupted)
    file = lines(tmp_path / "in.jsonl", [{"prompt": "abc"}] * 3)
    with pytest.raises(SystemExit) as left:
        predicted(file, "--checkpoint", gpt, "--tokens", 1, "--batch_size", 1)
    assert left.value.code == code and len(calls) == 2 and list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_a_reader_that_has_read_enough(gpt, tmp_path):
    file = lines(tmp_path / "in.jsonl", [{"prompt": "abc", "pad": "x" * 9000}] * 40)
    command = f"{sys.executable} predict.py --checkpoint {gpt} --input {file} --tokens 1 --batch_size 1 | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["source"] == "in.jsonl:1"
    assert done.stderr.count("\n") == 1 and "inputs predicted" in done.stderr


@pytest.mark.slow
def test_several_vocabularies_are_refused(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        write_set(tmp_path / name, seed)
    line = f"--training_mode=multicontext --multicontext_datasets {tmp_path / 'a'} {tmp_path / 'b'} {SMALL}"
    run(f"{line} --out_dir {tmp_path / 'out'}", "--set", f"cache_dir={tmp_path / 'cache'}")
    file = lines(tmp_path / "in.jsonl", [{"prompt": "abc"}])
    assert "holds no tokenizer" in refused(capsys, "--checkpoint", tmp_path / "out", "--input", file)


@pytest.mark.slow
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
        (["--output", ""], "`--output` is empty"),
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
