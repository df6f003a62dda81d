"""Records for fine-tuning: rows, batches, splits, files and the cache."""

import datetime
import gzip
import json
import math
import pickle

import numpy as np
import pytest
import torch
import transformers
from record_sets import CHATML, MARKED, TALK, TRIMMED, make_tokenizer, run_of, write

import data.records
from data.bundle import collate
from data.records.chat import Encoded, Encoder
from data.records.dataset import Rows, fill, first_fit


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def run(tmp_path, tokenizer_folder):
    return run_of(tmp_path, model_name_or_path=str(tokenizer_folder))


# ---- rows ----


def test_first_fit_against_the_plain_search():
    lengths = np.random.default_rng(0).integers(1, 33, size=500).tolist()
    rows, room = [], []
    for number, length in enumerate(lengths):
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(32)
        rows[row].append(number)
        room[row] -= length
    assert first_fit(lengths, 32) == rows
    assert sum(lengths) / (32 * len(rows)) > 0.9


def test_rows_by_hand():
    def record(*ids):
        return Encoded(np.array(ids, np.int32), np.arange(len(ids)) > 0)

    found = fill([record(5, 6, 7), record(8, 9), record(4)], [[0, 1], [2]], 7, pad=1)
    assert found["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 1], [4, 1, 1, 1, 1, 1, 1]]
    assert found["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    assert found["learned"].astype(int).tolist() == [[0, 1, 1, 0, 1, 0, 0], [0] * 7]


RECORDS = [{"text": " ".join(f"word{i * j % 7}" for j in range(1 + i % 6))} for i in range(40)]


def test_labels_and_shift_labels(run, tmp_path):
    bundle = data.records.build(data.records.Config(path=write(tmp_path, RECORDS), block_size=48), run)
    rows = bundle.train_dataset
    batch = rows.__getitems__(list(range(len(rows))))
    assert all(each.dtype == torch.int64 and each.shape == (len(rows), 48) for each in batch.values())
    first = batch["position_ids"] == 0
    assert first.sum() > 2 * len(rows)  # several records in a row
    assert (batch["labels"][first] == -100).all()
    learned = batch["labels"] != -100
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned]) and learned.sum() > 0
    assert torch.equal(batch["shift_labels"][:, :-1], batch["labels"][:, 1:])
    assert (batch["shift_labels"][:, -1] == -100).all()
    one = rows[2]
    assert all(torch.equal(one[name], batch[name][2]) for name in batch)
    assert all(torch.equal(collate([rows[0], rows[1]])[name], batch[name][:2]) for name in batch)
    copy = pickle.loads(pickle.dumps(rows))
    assert torch.equal(copy.__getitems__([1])["input_ids"], rows.__getitems__([1])["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_records_do_not_see_one_another(run, tmp_path, attention):
    """Logits and loss of packed rows are those of each record alone, in a model of transformers."""
    bundle = data.records.build(data.records.Config(path=write(tmp_path, RECORDS), block_size=48), run)
    batch = bundle.train_dataset.__getitems__([0, 1, 2])
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=bundle.dims["vocab_size"], attn_implementation=attention,
        use_cache=False,  # as the Trainer sets it; with a cache transformers does not look for packed rows
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(settings).eval()
    losses, compared = [], 0
    with torch.no_grad():
        found = model(**batch)
        mixed = model(input_ids=batch["input_ids"]).logits
        for row in range(3):
            begins = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 48]
            for begin, end in zip(begins, begins[1:], strict=False):
                ids, labels = batch["input_ids"][row : row + 1, begin:end], batch["labels"][row : row + 1, begin:end]
                alone = model(input_ids=ids)
                torch.testing.assert_close(found.logits[row, begin:end], alone.logits[0], rtol=1e-4, atol=1e-5)
                compared += begin > 0 and not torch.allclose(mixed[row, begin:end], alone.logits[0], atol=1e-3)
                kept = labels[0, 1:] != -100
                losses.append(
                    torch.nn.functional.cross_entropy(alone.logits[0, :-1][kept], labels[0, 1:][kept], reduction="none")
                )
    assert compared > 5  # without positions they would see one another
    torch.testing.assert_close(found.loss, torch.cat(losses).mean())


@pytest.mark.keys("dataset(records).packing")
def test_packing_off(run, tmp_path):
    config = data.records.Config(path=write(tmp_path, RECORDS), block_size=48, packing=False, eval_fraction=0)
    rows = data.records.build(config, run).train_dataset
    batch = rows.__getitems__(list(range(len(rows))))
    assert len(rows) == len(RECORDS) and torch.equal(batch["position_ids"][0], torch.arange(48))


@pytest.mark.keys("dataset(records).block_size")
def test_long_records_lose_their_end(run, tmp_path, tokenizer):
    long = {"prompt": "A tale of the spider.", "completion": " word" * 60}
    hopeless = {"prompt": "word " * 100, "completion": "never seen"}
    path = write(tmp_path, [long, hopeless, *RECORDS[:3]])
    bundle = data.records.build(data.records.Config(path=path, block_size=64, packing=False, eval_fraction=0), run)
    whole = Encoder(tokenizer, "assistant", None)(long, "x").ids
    assert len(whole) > 64 and bundle.train_dataset[0]["input_ids"].tolist() == whole[:64].tolist()
    assert len(bundle.train_dataset) == 4
    told = "\n".join(bundle.summary)
    assert "2 records are longer than 64 tokens" in told and "1 records have no token to learn" in told


# ---- splits, the bundle, the cache ----


def texts(tokenizer, rows):
    ids = rows.__getitems__(list(range(len(rows))))["input_ids"]
    return {
        part for row in tokenizer.batch_decode(ids) for part in row.replace("<pad>", "").split("<|im_end|>") if part
    }


@pytest.mark.slow
def test_the_draw_of_held_out_records_is_stable(run, tmp_path, tokenizer):
    """By seed and content: other records may come and go, and a repeated one is on one side."""
    records = [{"text": f"number {i}"} for i in range(200)]
    sides = []
    for number, chosen in enumerate([records, [*records[::-1][:150], {"text": "new"}, records[-1]]]):
        path = write(tmp_path / str(number), chosen)
        bundle = data.records.build(data.records.Config(path=path, block_size=32, eval_fraction=0.25), run)
        sides.append([texts(tokenizer, bundle.train_dataset), texts(tokenizer, bundle.eval_datasets["validation"])])
    assert 30 < len(sides[0][1]) < 70 and not sides[0][0] & sides[0][1]
    assert sides[1][1] - {"new"} == sides[0][1] & (sides[1][0] | sides[1][1])
    run.seed += 1
    other = data.records.build(data.records.Config(path=path, block_size=32, eval_fraction=0.25), run)
    assert texts(tokenizer, other.eval_datasets["validation"]) != sides[1][1]


@pytest.mark.slow
@pytest.mark.keys("dataset(records).eval_path", "dataset(records).eval_fraction")
def test_held_out_by_default_by_folder_and_by_path(run, tmp_path, tokenizer):
    path = write(tmp_path / "one", RECORDS)
    assert len(data.records.build(data.records.Config(path=path, block_size=48), run).eval_datasets) == 1
    write(tmp_path / "two", RECORDS, "train.jsonl")
    other = write(tmp_path / "two", [{"text": "held out"}], "val.jsonl")
    for config in ({"path": str(tmp_path / "two")}, {"path": path, "eval_path": other}):
        bundle = data.records.build(data.records.Config(block_size=48, **config), run)
        assert texts(tokenizer, bundle.eval_datasets["validation"]) == {"held out"}
        assert len(texts(tokenizer, bundle.train_dataset)) == len({record["text"] for record in RECORDS})
    nothing = data.records.Config(path=str(tmp_path / "two"), block_size=48, eval_fraction=0)
    assert data.records.build(nothing, run).eval_datasets == {}


def test_bundle(run, tmp_path, tokenizer_folder):
    run.process.model_name_or_path = None
    config = data.records.Config(path=write(tmp_path, RECORDS), block_size=48, tokenizer=str(tokenizer_folder))
    bundle = data.records.build(config, run)
    assert bundle.dims == {"vocab_size": len(bundle.processor.tokenizer), "block_size": 48, "packed": True}
    assert bundle.units == {"tokens": 48}
    assert list(bundle.metrics) == ["validation"]
    assert bundle.metrics["validation"].compute(2.0) == {"perplexity": math.exp(2.0)}
    assert bundle.metrics["validation"].compute(1e4) == {"perplexity": math.inf}
    assert (
        "40 records" not in bundle.summary[0] and "for training" in bundle.summary[0] and "learned" in bundle.summary[0]
    )
    sampler = bundle.sampler(5)
    sampler.set_epoch(2)
    order = list(sampler)
    assert sorted(order) == list(range(len(bundle.train_dataset))) and order != sorted(order)
    sampler.set_position(2)
    assert list(sampler) == order[2:] and list(sampler) == order


def test_a_vocabulary_with_gaps(run, tmp_path, tokenizer):
    """An embedding has a row for the largest id, not as many rows as there are tokens."""
    tokenizer.save_pretrained(tmp_path / "own")
    file, largest = tmp_path / "own/tokenizer.json", 2 * len(tokenizer)
    content = json.loads(file.read_text())
    content["model"]["vocab"]["Q"] = largest
    file.write_text(json.dumps(content))
    run.process.model_name_or_path = str(tmp_path / "own")
    path = write(tmp_path, [{"text": "Q"}])
    bundle = data.records.build(data.records.Config(path=path, block_size=48, eval_fraction=0), run)
    assert bundle.train_dataset[0]["input_ids"].max() == largest and bundle.dims["vocab_size"] == largest + 1


@pytest.mark.slow
@pytest.mark.keys("dataset(records).tokenizer")
def test_a_tokenizer_that_the_weights_do_not_know(run, tmp_path, tokenizer):
    """Other numbers for the same tokens are refused; further tokens, or a model without a tokenizer, are not."""
    config = data.records.Config(path=write(tmp_path, RECORDS), block_size=48, tokenizer=str(tmp_path / "own"))
    tokenizer.add_tokens(["spider-like"])
    tokenizer.save_pretrained(tmp_path / "own")
    assert data.records.build(config, run).dims["vocab_size"] == len(tokenizer)
    file = tmp_path / "own/tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="dataset.tokenizer: .* has other ids than") as caught:
        data.records.build(config, run)
    assert "\n" not in str(caught.value)
    run.process.model_name_or_path = str(tmp_path)
    assert len(data.records.build(config, run).train_dataset)


@pytest.mark.slow
def test_tokens_are_prepared_once(run, tmp_path, monkeypatch):
    path = write(tmp_path, RECORDS)
    calls = []
    encode = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, *given: calls.append(1) or encode(self, *given))

    def prepared(**keys):
        calls.clear()
        bundle = data.records.build(data.records.Config(**{"path": path, "block_size": 48, **keys}), run)
        assert isinstance(bundle.train_dataset, Rows)
        return bool(calls)

    assert prepared() and not prepared()
    for keys in (
        {"block_size": 40},
        {"packing": False},
        {"loss_on": "all"},
        {"eval_fraction": 0.2},
        {"text_column": "text"},
    ):
        assert prepared(**keys), keys
    assert prepared(chat_template=MARKED)
    write(tmp_path, RECORDS[1:])
    assert prepared() and not prepared()


@pytest.mark.slow
def test_what_tells_records_from_others(run, tmp_path):
    """A resumed run is refused other records, not files that were copied or touched."""

    def known(**keys):
        config = data.records.Config(**{"path": write(tmp_path, records), "block_size": 48, **keys})
        return data.records.build(config, run).files["data.json"]

    records = list(RECORDS)
    before = known()
    assert before["train"]["records"] + before["val"]["records"] == len(RECORDS) and before["block_size"] == 48
    assert known() == before  # written anew: the same bytes at another time
    records[3] = {"text": records[3]["text"][::-1]}
    assert known() != before and known()["train"]["rows"] == before["train"]["rows"]
    records[:] = RECORDS
    for keys in ({"packing": False}, {"loss_on": "all", "chat_template": MARKED}, {"eval_fraction": 0}):
        assert (known(**keys) == before) == ("loss_on" in keys), keys  # plain text is learned whole in any case


def test_a_template_that_writes_the_date(run, tmp_path, monkeypatch):
    """A run that goes on tomorrow trains on the rows that it began with."""
    template = "{{ strftime_now('%Y') }}" + CHATML
    path = write(tmp_path, [{"messages": TALK}, {"messages": TALK[2:]}])
    config = data.records.Config(path=path, block_size=64, chat_template=template, eval_fraction=0)
    first = data.records.build(config, run)
    today = datetime.date.today().isoformat()
    assert [line for line in first.summary if "writes the date" in line and today in line]

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return cls(2031, 1, 2)

    monkeypatch.setattr(datetime, "date", Tomorrow)
    second = data.records.build(config, run)
    assert second.files == first.files and second.summary == first.summary


@pytest.mark.keys("dataset(records).chat_template")
def test_chat_template_from_settings(run, tmp_path, tokenizer):
    path = write(tmp_path, [{"messages": TALK}, {"messages": TALK[2:]}])
    (tmp_path / "chat.jinja").write_text(TRIMMED)
    for given in (TRIMMED, str(tmp_path / "chat.jinja")):
        config = data.records.Config(path=path, block_size=64, chat_template=given, eval_fraction=0)
        bundle = data.records.build(config, run)
        assert bundle.processor.tokenizer.chat_template == TRIMMED  # and is saved with the model
        assert tokenizer.decode(bundle.train_dataset[0]["input_ids"]).startswith("<s>[user]How many")
    with pytest.raises(ValueError, match="dataset.chat_template: nowhere.jinja is neither a file nor a Jinja template"):
        data.records.build(data.records.Config(path=path, chat_template="nowhere.jinja"), run)


@pytest.mark.slow
def test_folders_of_records(run, tmp_path):
    """Lists and lines, compressed or not, in subfolders and behind links; all else is counted."""
    write(tmp_path / "elsewhere", RECORDS[30:], "d.jsonl")
    folder = tmp_path / "several"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps(RECORDS[:9], indent=2))
    write(folder, RECORDS[9:12], "b.ndjson")
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS[12:30])
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "deep/er/linked").symlink_to(tmp_path / "elsewhere")
    (folder / "deep/circle").symlink_to(folder)
    for name in ("README.md", "deep/table.parquet", "deep/other.parquet", ".hidden.jsonl", "test.jsonl"):
        (folder / name).write_text("{}")
    config = data.records.Config(path=str(folder), block_size=48, packing=False, eval_fraction=0)
    bundle = data.records.build(config, run)
    single = data.records.Config(path=write(tmp_path, RECORDS), block_size=48, packing=False, eval_fraction=0)
    other = data.records.build(single, run).train_dataset
    assert torch.equal(
        bundle.train_dataset.__getitems__(range(40))["input_ids"], other.__getitems__(range(40))["input_ids"]
    )
    (line,) = [line for line in bundle.summary if "not read" in line]
    assert "1 .jsonl, 1 .md, 2 .parquet" in line


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train.jsonl", "val.jsonl"),
        ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"),
        ("train/x.jsonl", "dev/x.jsonl"),
        ("data/train.jsonl", "data/valid.jsonl"),
        ("talks.jsonl", "val.jsonl"),
    ],
)
def test_splits_by_name(run, tmp_path, tokenizer, train, held_out):
    write(tmp_path / "set", RECORDS, train)
    write(tmp_path / "set", [{"text": "held out"}], held_out)
    write(tmp_path / "set", [{"text": "never seen"}], held_out.replace("val", "test").replace("dev", "test"))
    bundle = data.records.build(data.records.Config(path=str(tmp_path / "set"), block_size=48), run)
    assert texts(tokenizer, bundle.eval_datasets["validation"]) == {"held out"}
    assert texts(tokenizer, bundle.train_dataset) == {record["text"] for record in RECORDS}


def test_what_is_not_used_is_said_once(run, tmp_path):
    records = [{"messages": TALK, "tools": [{"name": "x"}], "id": number} for number in range(3)]
    records += [{"text": "x", "id": 3}, {"messages": [{"role": "developer", "content": "Be short."}, *TALK]}]
    template = CHATML.replace("in messages", "in messages if m.role != 'developer'")
    path = write(tmp_path, records)
    config = data.records.Config(path=path, block_size=64, chat_template=template, eval_fraction=0)
    summaries = [data.records.build(config, run).summary for _ in range(2)]  # the second one is from the cache
    assert summaries[0] == summaries[1]
    assert [line for line in summaries[0] if "`id` (4), `tools` (3)" in line]
    assert [line for line in summaries[0] if line.startswith("in 1 records") and "`developer`" in line]


@pytest.mark.keys("dataset(records).path")
def test_names_in_the_home_folder(run, tokenizer):
    write(run.cache_dir / "datasets/mine", RECORDS, "train.jsonl")
    config = data.records.Config(path="mine", block_size=48)
    assert data.records.check(config, run) == []
    assert len(data.records.build(config, run).train_dataset) > 1


def test_hugging_face_data_sets(run, tokenizer, monkeypatch):
    """By a stand-in for the package: its splits are read, and its held-out one is used."""
    import importlib.machinery
    import sys
    import types

    package = types.ModuleType("datasets")
    package.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    splits = {"train": RECORDS, "validation": [{"text": "held out"}], "test": [{"text": "unseen"}]}
    package.load_dataset = lambda name: splits if name == "someone/talks" else {}["no such data set"]
    monkeypatch.setitem(sys.modules, "datasets", package)
    bundle = data.records.build(data.records.Config(path="someone/talks", block_size=48), run)
    assert texts(tokenizer, bundle.eval_datasets["validation"]) == {"held out"}
    assert len(texts(tokenizer, bundle.train_dataset)) == len({record["text"] for record in RECORDS})
    with pytest.raises(ValueError, match="dataset.path: someone/else cannot be loaded: .*no such data set"):
        data.records.build(data.records.Config(path="someone/else"), run)
