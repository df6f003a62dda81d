"""Bad data and bad settings: one line that names the value, the place and the remedy."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_folders import counting, text_run, write_split, write_text_folder

import prepare
from data.text import Config, build, check
from data.text.dataset import CHUNK_TOKENS, largest_id

ROOT = Path(__file__).resolve().parents[2]


def refusal(tmp_path, path=None, run=None, **config) -> str:
    """The one-line message that `check` gives and `build` ends with."""
    config = Config(path if path is not None else str(tmp_path / "a"), **{"block_size": 16} | config)
    run = run or text_run(tmp_path / "cache")
    problems = check(config, run)
    with pytest.raises(ValueError) as caught:
        build(config, run)
    message = str(caught.value)
    assert "\n" not in message and (not problems or message == problems[0])
    return message


def unusable(**config) -> str:
    with pytest.raises(ValueError) as caught:
        Config(**config)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- settings ----

TWO = {"path": ["a", "b"], "mode": "multidataset"}
HALVES = [0.5, 0.5]


@pytest.mark.keys("dataset(text).path")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"path": []}, "dataset.path (--dataset) names no data set"),
        ({"path": ""}, "dataset.path (--dataset) names no data set"),
        ({"path": ["a", "b"]}, "dataset.mode (--training_mode) single takes one data set"),
        (
            {"path": "a", "mode": "multidataset"},
            "needs at least two data sets but dataset.path (--dataset_list) names a",
        ),
        ({"path": ["a"], "mode": "multicontext"}, "data sets but dataset.path (--multicontext_datasets) names a"),
        ({"path": ["a", "b", "a"], "mode": "multicontext"}, "names a twice"),
        (
            {**TWO, "sampling_probs": [1, 0, 0]},
            "dataset.sampling_probs (--dataset_sampling_probs) has 3 entries but dataset.path (--dataset_list) names 2",
        ),
        ({**TWO, "sampling_probs": [-0.5, 1.5]}, "[-0.5, 1.5] are no probabilities"),
        ({**TWO, "sampling_probs": [float("nan"), 0.5]}, "[nan, 0.5] are no probabilities"),
        ({**TWO, "sampling_probs": [0.5, 0.6]}, "[0.5, 0.6] are no probabilities: each is from 0 to 1, and they sum"),
        ({**TWO, "sampling_probs": [0, 0]}, "(not 0)"),
        ({**TWO, "sampling_probs": [0.5, 0.49999]}, "(not 0.99999)"),
        (
            {**TWO, "sampling_probs": HALVES, "sampling_probs_final": [0.5, 0.6]},
            "dataset.sampling_probs_final (--dataset_sampling_probs_final) [0.5, 0.6]",
        ),
        (
            {**TWO, "sampling_probs_final": HALVES},
            "sampling_probs_final (--dataset_sampling_probs_final) has no effect without dataset.sampling_probs ",
        ),
        (
            {**TWO, "sampling_probs": HALVES, "sampling_transition": "cosine"},
            "has no effect without dataset.sampling_probs_final",
        ),
        (
            {
                **TWO,
                "sampling_probs": [1.0, 0.0],
                "sampling_probs_final": HALVES,
                "sampling_transition": "exponential",
            },
            "[1, 0] holds a 0, which no factor leads from or to",
        ),
        (
            {**TWO, "sampling_probs": HALVES, "sampling_probs_final": HALVES, "interleave": True},
            "dataset.interleave (--dataset_interleaving) keeps to fixed proportions",
        ),
        (
            {**TWO, "path": ["a", "b", "c"], "interleave": True, "sampling_probs": [0.12345, 0.23456, 0.64199]},
            "[0.12345, 0.23456, 0.64199] make no pattern of at most 10,000 batches",
        ),
    ],
)
def test_settings_that_contradict_one_another(config, words):
    assert words in unusable(**config)


def test_settings_that_are_fine():
    assert Config(["a"]).paths() == Config("a").paths() == ["a"]
    assert Config(**TWO, sampling_probs=[0.3333333, 0.6666667]).sampling_probs == [0.3333333, 0.6666667]


@pytest.mark.parametrize(
    ("key", "flag", "value"),
    [
        ("sampling_probs", "--dataset_sampling_probs", HALVES),
        ("sampling_probs_final", "--dataset_sampling_probs_final", HALVES),
        ("sampling_transition", "--dataset_sampling_probs_transition_method", "cosine"),
        ("interleave", "--dataset_interleaving", True),
        ("separate_embeddings", "--multidataset_wte", True),
    ],
)
def test_keys_of_a_mixture_alone(key, flag, value):
    for mode in ({"path": "a"}, {"path": ["a", "b"], "mode": "multicontext"}):
        assert f"dataset.{key} ({flag})" in unusable(**mode, **{key: value})


def test_settings_of_the_run_that_a_mixture_cannot_have(tmp_path):
    paths = [str(write_text_folder(tmp_path / name, counting(500, 60))) for name in "ab"]
    base = {"path": paths, "mode": "multidataset", "separate_embeddings": True}
    moving = {"sampling_probs": [0.5, 0.5], "sampling_probs_final": [0.9, 0.1]}

    def message(config=None, **run):
        return refusal(tmp_path, run=text_run(tmp_path / "cache", **run), **base, **config or {})

    assert "tune_batch_size changes which data set" in message(tune_batch_size=True)
    assert "shuffle: false reads the data in stored order" in message(shuffle=False)
    assert "limit_train_batches: 0.5 leaves out" in message(moving, limit_train_batches=0.5)
    assert "limit_train_batches: 1 leaves out" in message({"interleave": True}, limit_train_batches=1)
    assert "num_train_epochs: -1 has none; set --max_steps" in message(moving, max_steps=-1, num_train_epochs=-1)
    fine = text_run(tmp_path / "cache", limit_train_batches=0.5)
    assert check(Config(**base, block_size=16), fine) == [], "drawn with fixed probabilities, any part will do"


# ---- which data set ----


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = text_run(tmp_path / "cache")
    write_text_folder(tmp_path / "data/my_novels", counting(100))
    assert "no data set shakespeer_char here" in refusal(tmp_path, "shakespeer_char")
    assert refusal(tmp_path, "shakespeer_char").endswith("did you mean `shakespeare_char`?")
    assert refusal(tmp_path, "my_novel").endswith("did you mean `my_novels`?")
    for name in ("x" * 300, "x/" * 2500, "~nobody_known_here/x"):
        assert "no data set" in refusal(tmp_path, name), "a name that no file system can have"
    assert refusal(tmp_path, "openwebtext").endswith(
        "python prepare.py --dataset openwebtext --text FILE --tokenizer bytes"
    )
    (tmp_path / "book.txt").write_text("x")
    assert "book.txt is a file, not a folder of tokens" in refusal(tmp_path, "book.txt")
    assert "--dataset book --text book.txt" in refusal(tmp_path, "book.txt")
    (tmp_path / "chats.jsonl").write_text('{"messages": []}')
    assert "--task_name records" in refusal(tmp_path, "chats.jsonl")
    (tmp_path / "empty").mkdir()
    assert "the folder empty has neither train.bin nor val.bin" in refusal(tmp_path, "empty")
    assert check(Config("python_stdlib"), run) == [], "prepared on first use"
    assert "python_stdlib is not prepared yet; run python prepare.py --dataset python_stdlib" in refusal(
        tmp_path, "python_stdlib"
    )


def test_the_remedy_for_a_text_file_works_as_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    (tmp_path / "book.txt").write_text("some words in a row\n" * 60)
    command = refusal(tmp_path, "book.txt").partition("python prepare.py ")[2]
    prepare.main(command.split())
    assert check(Config("book", block_size=16), text_run(tmp_path / "home")) == []


def test_all_problems_are_listed(tmp_path):
    problems = check(Config(["no_such_one", "nor_this"], mode="multidataset"), text_run(tmp_path, shuffle=False))
    assert len(problems) == 3


# ---- files ----


@pytest.mark.parametrize(
    ("meta", "size", "vocab_size", "words"),
    [
        (False, None, None, "a has no val.bin; prepare the data set again"),
        (False, 0, None, "val.bin is empty; prepare"),
        (False, 399, None, "val.bin has 399 bytes, but that is no whole number of uint16 tokens"),
        (False, 398, 70_000, "val.bin has 398 bytes, but that is no whole number of uint32 tokens"),
        (True, 398, None, "says 200 uint16; it is cut off"),
    ],
)
def test_files_that_are_missing_empty_or_cut_off(tmp_path, meta, size, vocab_size, words):
    file = write_text_folder(tmp_path / "a", counting(500, 60), meta=meta) / "val.bin"
    content = file.read_bytes()[:size]
    file.unlink() if size is None else file.write_bytes(content)
    assert words in refusal(tmp_path, vocab_size=vocab_size)


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_numpys_files_are_no_tokens(tmp_path, save):
    folder, stream = write_text_folder(tmp_path / "a", counting(500, 60), meta=False), io.BytesIO()
    save(stream, np.arange(500, dtype=np.uint16))
    (folder / "train.bin").write_bytes(stream.getvalue())
    assert "train.bin is a NumPy file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"magic": 20240520, "version": 2}, "magic 20240520 and version 2; version 1 can be read"),
        ({"dtype": "uint32", "magic": 20240801}, "magic 20240801 and version 1; version 7 can be read"),
        *(
            ({"magic": 20240520, "counted": counted}, f"2,024 bytes, but its header counts {counted} uint16 tokens")
            for counted in (499, 501, -5)
        ),
        ({"magic": 20240520, "tokens": []}, "train.bin is empty"),
        ({"dtype": "uint32", "magic": 20240801, "version": 7, "meta": True}, "train.bin holds 500 uint32 tokens but"),
    ],
)
def test_headers(tmp_path, header, words):
    header = {"meta": False, "tokens": counting(500, 60), "dtype": "uint16", **header}
    folder = write_text_folder(tmp_path / "a", counting(500, 60), meta=header.pop("meta"))
    write_split(folder / "train.bin", header.pop("tokens"), header.pop("dtype"), **header)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2; expected 1"),
        ({"vocab_size": "65"}, "vocab_size is '65'; expected 1 to 4,294,967,296"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected uint32, or uint16"),
        ({"vocab_size": 65537}, "dtype is 'uint16'; expected uint32, or uint16 up to 65,536 ids"),
        ({"splits": {"train": {"tokens": "many"}}}, "splits is {'train': {'tokens': 'many'}}; expected numbers"),
        ({"splits": [1]}, "splits is [1]; expected numbers"),
        ({"vocab_size": 2**32 + 1, "dtype": "uint32"}, "vocab_size is 4294967297; expected 1 to 4,294,967,296"),
        ({"vocab_size": 10**4000, "dtype": "uint32"}, "vocab_size is 1000"),
        ({"dtype": ["uint16"]}, "dtype is ['uint16']; expected uint32"),
    ],
)
def test_a_wrong_meta(tmp_path, change, message):
    folder = write_text_folder(tmp_path / "a", counting(500, 60))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    found = refusal(tmp_path)
    assert message in found and "meta.json" in found and len(found) < 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "is [1], not an object"),
        (b"null", "is None, not an object"),
        (b"[" * 100_000, "cannot be read as JSON (lists or objects are nested too deeply)"),
    ],
)
def test_a_meta_that_is_no_json(tmp_path, content, words):
    (write_text_folder(tmp_path / "a", counting(500, 60)) / "meta.json").write_bytes(content)
    assert f"meta.json {words}" in refusal(tmp_path)


def test_block_size_longer_than_a_split(tmp_path):
    write_text_folder(tmp_path / "a", counting(500, 60), counting(40, 60))
    message = refusal(tmp_path, block_size=40)
    assert "dataset.block_size (--block_size) 40 needs 41 tokens but" in message
    assert "val.bin holds 40; set it to at most 39" in message
    assert check(Config(str(tmp_path / "a"), block_size=39), text_run(tmp_path)) == []
    assert len(check(Config(str(tmp_path / "a"), block_size=500), text_run(tmp_path))) == 2


def test_a_step_of_more_samples_than_the_text_has_windows(tmp_path, monkeypatch):
    """Such a batch's numbers alone would fill the memory."""
    write_text_folder(tmp_path / "a", counting(500, 60))  # 484 windows of 16 tokens
    write_text_folder(tmp_path / "b", counting(500, 60))
    flag = "--per_device_train_batch_size (--batch_size)"
    message = refusal(tmp_path, run=text_run(tmp_path / "cache", batch=10**14))
    assert f"{flag} {10**14} makes a step of 100,000,000,000,000 samples" in message
    assert "but the text has 484 windows of 16 tokens; lower it, or use a longer text" in message

    def problems(batch, path="a", **trainer):
        path = str(tmp_path / path) if isinstance(path, str) else [str(tmp_path / each) for each in path]
        several = {"mode": "multidataset", "separate_embeddings": True} if isinstance(path, list) else {}
        return check(Config(path, block_size=16, **several), text_run(tmp_path, batch=batch, trainer=trainer))

    assert problems(484) == [] and len(problems(485)) == 1
    assert problems(968, ["a", "b"]) == [] and len(problems(969, ["a", "b"])) == 1
    assert problems(121, gradient_accumulation_steps=4) == []
    (line,) = problems(122, gradient_accumulation_steps=4)
    assert "122 makes a step of 488 samples" in line
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert problems(242) == [] and len(problems(243)) == 1


# ---- vocabularies ----


def test_a_token_that_the_vocabulary_does_not_have(tmp_path):
    tokens = counting(500, 60)
    tokens[[321, 400]] = 65
    write_text_folder(tmp_path / "a", tokens, counting(100, 60))
    message = refusal(tmp_path)
    assert "train.bin: token 321 (byte 642) is 65, not an id of the vocabulary of 65" in message
    write_split(tmp_path / "a/train.bin", tokens, magic=20240520)
    assert "token 321 (byte 1,666) is 65" in refusal(tmp_path)
    write_text_folder(tmp_path / "a", counting(500, 60), tokens)
    assert "val.bin: token 321" in refusal(tmp_path)


def test_wrong_tokens_are_found_past_the_first_chunk(tmp_path):
    tokens = np.zeros(CHUNK_TOKENS + 10, np.uint16)
    tokens[CHUNK_TOKENS + 3] = 999
    write_text_folder(tmp_path / "a", tokens, counting(100, 60))
    assert f"token {CHUNK_TOKENS + 3:,} (byte {2 * CHUNK_TOKENS + 6:,}) is 999" in refusal(tmp_path)


@pytest.mark.keys("dataset(text).vocab_size")
def test_no_meta_means_gpt2_or_vocab_size(tmp_path):
    tokens = counting(500)
    tokens[77] = 50256
    folder = write_text_folder(tmp_path / "a", tokens, counting(100), meta=False)
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path / "cache"))
    assert bundle.dims["vocab_size"] == 50257 and bundle.processor is None
    assert "no meta.json, taken to be GPT-2's tokens" in bundle.summary[1]
    tokens[77] = 50257
    write_split(folder / "train.bin", tokens)
    assert "is 50,257, not an id of the vocabulary of 50,257 (GPT-2's" in refusal(tmp_path)
    assert "set dataset.vocab_size" in refusal(tmp_path)
    bundle = build(Config(str(folder), block_size=16, vocab_size=50300), text_run(tmp_path / "cache"))
    assert bundle.dims["vocab_size"] == 50300 and "vocabulary 50,300" in bundle.summary[0]
    assert "vocabulary of 50,000 (dataset.vocab_size); raise it" in refusal(tmp_path, vocab_size=50_000)
    write_text_folder(tmp_path / "a", counting(500, 60))
    assert "dataset.vocab_size 65 has no effect:" in refusal(tmp_path, vocab_size=65)


def test_wide_tokens_without_a_meta_are_noticed(tmp_path):
    write_text_folder(tmp_path / "a", counting(500), dtype="uint32", meta=False)
    assert "every second uint16 is 0, so its tokens are uint32" in refusal(tmp_path)


def test_what_was_looked_at_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from data.text import dataset

    folder = write_text_folder(tmp_path / "a", counting(500, 60), counting(100, 60))
    config, run = Config(str(folder), block_size=16), text_run(tmp_path / "cache")
    build(config, run)
    notes = sorted((tmp_path / "cache/text_checks").iterdir())
    assert len(notes) == 2 and {json.loads(note.read_text())["largest_id"] for note in notes} == {59}
    looked, chunks = [], dataset._chunks
    monkeypatch.setattr(dataset, "_chunks", lambda split: looked.append(split.path.name) or chunks(split))
    build(config, run)
    assert looked == []
    status = os.stat(folder / "train.bin")
    write_split(folder / "train.bin", counting(500, 64))
    os.utime(folder / "train.bin", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    build(config, run)
    assert looked == ["train.bin"]
    notes[0].write_text("{")  # a damaged note is no note
    build(config, run)
    assert len(looked) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500, 60))
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert build(Config(str(folder), block_size=16), text_run(tmp_path / "cache"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A quarter of a gigabyte of tokens is looked at in a process that may not take half of that."""
    path = tmp_path / "train.bin"
    with path.open("wb") as stream:
        stream.truncate(2**28)
    code = (
        "import resource, sys; from pathlib import Path; import numpy\n"
        "from data.text.folder import Split; from data.text.dataset import largest_id\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert largest_id(Split(Path(sys.argv[1]), 'uint16', 0, 2**27), Path(sys.argv[2])) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    words = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024  # kB


def test_largest_id_by_hand(tmp_path):
    folder = write_text_folder(tmp_path / "a", [3, 1, 4, 1, 5], vocab_size=6)
    from data.text.folder import read_folder

    assert largest_id(read_folder(folder).splits["train"], tmp_path / "cache") == 5


# ---- several of them ----


def test_data_sets_with_one_embedding_need_one_tokenizer(tmp_path):
    def both(second=None, **config):
        write_text_folder(tmp_path / "a", counting(500, 3), vocab_size=3, symbols={"x": 0, "y": 1, "z": 2})
        write_text_folder(tmp_path / "b", counting(500, 3), **{"vocab_size": 3} | (second or {}))
        paths = [str(tmp_path / "a"), str(tmp_path / "b")]
        return {"path": paths, "mode": "multidataset", "block_size": 16, **config}

    larger = refusal(tmp_path, **both({"vocab_size": 4, "symbols": {"x": 0}}))
    assert "have vocabularies of 3 and 4 tokens; prepare both with one tokenizer (--tokenizer" in larger
    assert "set dataset.separate_embeddings (--multidataset_wte) true" in larger
    other = both({"symbols": {"x": 0, "z": 1, "y": 2}})
    assert "have different tokenizers (or no tokenizer.json to compare), though both of 3 tokens" in refusal(
        tmp_path, **other
    )
    run = text_run(tmp_path / "cache")
    assert check(Config(**other | {"separate_embeddings": True}), run) == []
    assert check(Config(**both({"symbols": {"z": 2, "x": 0, "y": 1}})), run) == []
    (tmp_path / "b/tokenizer.json").write_text("{")
    write = both()
    assert "tokenizer.json cannot be read" in refusal(tmp_path, **write)
    (tmp_path / "b/tokenizer.json").write_text("[" * 100_000)
    assert "tokenizer.json cannot be read (lists or objects are nested too deeply)" in refusal(tmp_path, **write)
    (tmp_path / "b/tokenizer.json").unlink()
    assert "or no tokenizer.json to compare" in refusal(tmp_path, **write)


def test_nanogpts_meta_and_ours_are_compared_by_their_symbols(tmp_path):
    write_text_folder(tmp_path / "a", counting(500, 3), vocab_size=3, symbols={"x": 0, "y": 1, "z": 2})
    write_text_folder(tmp_path / "b", counting(500, 3), meta=False)
    for table, problems in (("xyz", 0), ("xzy", 1)):
        write_pickle(tmp_path / "b/meta.pkl", {"vocab_size": 3, "itos": dict(enumerate(table))})
        config = Config([str(tmp_path / "a"), str(tmp_path / "b")], mode="multidataset", block_size=16)
        assert len(check(config, text_run(tmp_path / "cache"))) == problems
    (tmp_path / "a/tokenizer.json").write_text('{"model": []}')
    assert len(check(config, text_run(tmp_path / "cache"))) == 1


def test_contexts_need_equal_lengths(tmp_path):
    for name, train, val in (("a", 500, 200), ("b", 501, 199)):
        write_text_folder(tmp_path / name, counting(train, 60), counting(val, 60))
    config = Config([str(tmp_path / "a"), str(tmp_path / "b")], mode="multicontext", block_size=16)
    problems = check(config, text_run(tmp_path / "cache"))
    assert len(problems) == 2
    assert "position-aligned streams" in problems[0] and "hold 500 and 501 tokens" in problems[0]
    assert "hold 200 and 199 tokens" in problems[1]


# ---- nanoGPT's meta.pkl ----


def write_pickle(path, content) -> None:
    path.write_bytes(pickle.dumps(content))


def test_nanogpts_meta(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500, 5), meta=False)
    symbols = dict(enumerate("\n abc"))
    write_pickle(folder / "meta.pkl", {"vocab_size": 5, "itos": symbols, "stoi": {c: i for i, c in symbols.items()}})
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path / "cache"))
    assert bundle.dims["vocab_size"] == 5 and "vocabulary 5 (uint16, char)" in bundle.summary[0]
    assert bundle.processor.tokenizer.encode("a cab\n") == [2, 1, 4, 2, 3, 0]
    assert bundle.processor.tokenizer.decode([2, 1, 4, 2, 3, 0]) == "a cab\n"
    halves = [chr(0xD800 + index) for index in range(5)]  # of characters: these ids cannot be shown as text
    write_pickle(folder / "meta.pkl", {"vocab_size": 5, "itos": halves})
    assert build(Config(str(folder), block_size=16), text_run(tmp_path / "cache")).processor is None
    write_pickle(folder / "meta.pkl", {"vocab_size": 50000, "tokenizer": "tiktoken"})
    bundle = build(Config(str(folder), block_size=16), text_run(tmp_path / "cache"))
    assert bundle.dims["vocab_size"] == 50000 and bundle.processor is None


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_runs_nothing(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500, 5), meta=False)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps({"vocab_size": 5, "itos": Malicious(tmp_path / "harm")}, protocol)
        (folder / "meta.pkl").write_bytes(content)
        message = refusal(tmp_path)
        assert "meta.pkl is not read: it asks for" in message and ".mkdir" in message
        assert "Write a meta.json instead" in message
    assert not (tmp_path / "harm").exists()
    assert pickle.loads(content) and (tmp_path / "harm").exists(), "an ordinary loader would have run it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(3), "it asks for numpy"),
        ({1, 2}, "has no vocab_size"),
        ({"vocab_size": "5"}, "has no vocab_size from 1 to 4,294,967,296"),
        ({"vocab_size": 5, "itos": {0: "a"}}, "itos does not list the ids 0 to 4"),
        ({"vocab_size": 10**30}, "has no vocab_size from 1 to"),
        ({"vocab_size": 10**5000, "itos": ["a"]}, "has no vocab_size from 1 to"),
        ({"vocab_size": 2**32, "itos": ["a"]}, "itos does not list the ids 0 to 4294967295"),
        (pickle, None),
    ],
)
def test_pickles_without_a_vocabulary(tmp_path, content, message):
    folder = write_text_folder(tmp_path / "a", counting(500, 5), meta=False)
    if content is pickle:
        (folder / "meta.pkl").write_bytes(b"\x80\x04no pickle")
        message = "meta.pkl is not read: "
    else:
        write_pickle(folder / "meta.pkl", content)
    assert message in refusal(tmp_path)


# ---- what is imported ----


@pytest.mark.slow
def test_checking_needs_neither_numpy_nor_torch(tmp_path):
    write_text_folder(tmp_path / "a", counting(500, 60))
    write_text_folder(tmp_path / "b", counting(500, 60))
    code = (
        "import sys; from types import SimpleNamespace as S; from pathlib import Path\n"
        "from data.text import Config, check\n"
        "process = S(shuffle=True, tune_batch_size=False, limit_train_batches=1.0, model_name_or_path=None)\n"
        "hyper = S(max_steps=5, num_train_epochs=1, per_device_train_batch_size=4)\n"
        "run = S(cache_dir=Path('none'), process=process, hyper=hyper, trainer={}, samples_per_step=4)\n"
        "config = Config(sys.argv[1:], mode='multidataset', block_size=16, interleave=True, sampling_probs=[.5, .5],\n"
        "                separate_embeddings=True)\n"
        "assert check(config, run) == [], check(config, run)\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unreadable_tokenizer(tmp_path):
    folder = write_text_folder(tmp_path / "a", counting(500, 60))
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in refusal(tmp_path)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}, "added_tokens": []}')
    assert f"the tokenizer of {folder} cannot be loaded" in refusal(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    write_text_folder(tmp_path / "a", counting(500, 60))
    opened = Path.open

    def refusing(path, *arguments, **options):
        if path.name == "train.bin":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    assert "train.bin cannot be read (Permission denied)" in refusal(tmp_path)


# ---- the tokens of the first weights ----


def test_tokens_that_the_weights_do_not_know(tmp_path):
    """model_name_or_path names a folder with a tokenizer: its ids must mean what the data's do."""
    symbols = {letter: number for number, letter in enumerate("abcde")}
    folder = write_text_folder(tmp_path / "words", counting(500, 5), vocab_size=5, symbols=symbols)
    same = write_text_folder(tmp_path / "same", counting(500, 5), vocab_size=5, symbols=symbols)
    turned = dict(zip(symbols, reversed(symbols.values()), strict=True))
    other = write_text_folder(tmp_path / "other", counting(500, 5), vocab_size=5, symbols=turned)

    def problems(weights):
        run = text_run(tmp_path / "cache", model_name_or_path=weights and str(weights))
        return check(Config(str(folder), block_size=16), run)

    assert problems(None) == problems(same) == problems(tmp_path / "nowhere") == []
    (line,) = problems(other)
    (other / "tokenizer.json").write_text("[" * 100_000)
    assert problems(other) == [], "whoever reads the weights says so"
    assert "words has other tokens than the weights at" in line and f"--tokenizer {other}" in line
