"""Records that cannot be used: one line each, with the file and the line."""

import gzip
import json
from types import SimpleNamespace

import pytest
from record_sets import run_of

import data.records
from data.records import Config
from data.records.forms import Chat, Text, as_chat, read_form
from data.records.source import RecordSource, read

GOOD = {"text": "fine"}


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path, model_name_or_path="somewhere", flash_attn=False)


def problems_of(path, column=None):
    try:
        for place, record in read(RecordSource((path,))):
            read_form(record, place, column)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([1], "a record is a JSON object, this is a list"),
        ("text", "a record is a JSON object, this is text"),
        (
            {"body": "x"},
            "has neither `messages` nor .* or `text` .its keys: `body`.*text_column",
        ),
        ({"messages": []}, "`messages` must be a list of at least one message"),
        ({"messages": "x"}, "`messages` must be a list"),
        ({"messages": ["x"]}, "message 1 is text, not an object with `role` and `content`"),
        ({"messages": [*CHAT["messages"], {"content": "x"}]}, "`role` of message 2 is missing"),
        ({"messages": [{"role": "user"}]}, "`content` of message 1 is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "`content` of message 1 is null, not text"),
        ({"messages": [{"role": 3, "content": "x"}]}, "`role` of message 1 is a number, not text"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "`content` of message 1 is an object, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "message 1 has a part of type image_url",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "message 1 has a part of type text"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "`tool_calls` of message 1 must be a list"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "functions with a `name`"),
        ({**CHAT, "tools": "x"}, "`tools` is text, but not JSON"),
        ({**CHAT, "tools": ["x"]}, "`tools` is a list, not a list of objects"),
        ({**CHAT, "chat_template_kwargs": 3}, "`chat_template_kwargs` is a number, not an object"),
        ({"conversations": [{"from": "human"}]}, "`content` of message 1 is missing"),
        ({"conversations": [{"from": "human", "value": 3}]}, "`value` of message 1 is a number, not text"),
        ({"conversations": [{"from": 3, "value": "x"}]}, "`from` of message 1 is a number, not text"),
        ({"instruction": "x"}, "has no `output` .an instruction goes with an output"),
        ({"instruction": "x", "output": "y", "input": 3}, "`input` is a number, not text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "entry 1 of `history` is not a pair of texts"),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": "y"}, "`completion` must be a list"),
        ({"prompt": "x"}, "has no `completion` .a prompt goes with a completion"),
        ({"completion": "x"}, "has no `prompt`"),
        ({"prompt": "x", "completion": 4}, "`completion` is a number, not text"),
        ({"text": ["x"]}, "`text` is a list, not text"),
    ],
)
def test_malformed_records(tmp_path, record, says):
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(record)}\n")
    found = problems_of(file)
    assert found.startswith(f"{file}:3: ")
    with pytest.raises(ValueError, match=says):
        raise ValueError(found)


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("record", "messages", "learned", "inputs", "unread"),
    [
        ({"messages": [user("a"), answer("b")], "tools": None, "id": 1}, [user("a"), answer("b")], [1], {}, {"id"}),
        (
            {"messages": [user("a"), answer(None, tool_calls=[CALL], refusal=None)], "tools": TOOLS},
            [user("a"), answer("", tool_calls=[CALL])],
            [1],
            {"tools": TOOLS},
            set(),
        ),
        (
            {"messages": [user("a"), answer("b", tool_calls=[]), user([{"type": "text", "text": t} for t in "xy"])]},
            [user("a"), answer("b"), user("xy")],
            [1],
            {},
            set(),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            [{"role": "system", "content": "s"}, user("a"), answer("b")],
            [2],
            {},
            set(),
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "a"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
                    {"from": "observation", "value": "1"},
                    {"role": "assistant", "content": "b"},
                ],
                "tools": json.dumps(TOOLS),
            },
            [
                user("a"),
                answer("", tool_calls=[{"type": "function", **CALL}]),
                {"role": "tool", "content": "1"},
                answer("b"),
            ],
            [1, 3],
            {"tools": TOOLS},
            set(),
        ),
        (
            {"instruction": "a", "input": "", "output": "b", "history": [["c", "d"], ["e", "f"]]},
            [user("c"), answer("d"), user("e"), answer("f"), user("a"), answer("b")],
            [1, 3, 5],
            {},
            set(),
        ),
        ({"instruction": "a", "input": "x", "output": "b"}, [user("a\n\nx"), answer("b")], [1], {}, set()),
        (
            {"prompt": [user("a"), answer("b"), user("c")], "completion": [answer("d")]},
            [user("a"), answer("b"), user("c"), answer("d")],
            [3],
            {},
            set(),
        ),
        (
            {
                "messages": [user("a"), answer("b", weight=0)],
                "chat_template_kwargs": {"k": 1},
                "documents": [{"t": "x"}],
            },
            [user("a"), answer("b")],
            [],
            {"k": 1, "documents": [{"t": "x"}]},
            set(),
        ),
    ],
)
def test_forms_of_chats(record, messages, learned, inputs, unread):
    form, keys = read_form(record, "x:1", None)
    assert form.messages == messages and form.inputs == inputs and keys == unread
    assert [number for number, carries_loss in enumerate(form.learned) if carries_loss] == learned
    assert len(form.labels) == len(messages)


def test_forms_of_text():
    assert read_form({"text": "a", "x": 1}, "x:1", None) == (Text("a"), {"x"})
    assert read_form({"text": "a", "x": "b"}, "x:1", "x") == (Text("b"), {"text"})
    form, _ = read_form({"prompt": "a", "completion": "b"}, "x:1", None)
    assert form == Text("b", "a")
    assert as_chat(form) == Chat([user("a"), answer("b")], ["`prompt`", "`completion`"], [False, True])


@pytest.mark.keys("dataset(records).text_column")
def test_text_column_must_be_there(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n")
    assert problems_of(file, "body") == f"{file}:1: has no `body` (dataset.text_column names it)"


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', 2, "not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', 2, "not JSON .*0xff in position 10"),
        ("a.json", b'[\n {"text": "x"},\n {"text" "y"}\n]', 3, "not JSON"),
        ("a.json", b'[\n {"text": "x"}\n {"text": "y"}\n]', 2, "not JSON"),
        ("a.json", b'[\n {"text": "x"},\n {"text": "y"}\n', 3, "cut short"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n{"text": \n', mtime=0), 2, "not JSON"),
    ],
)
def test_files_that_are_not_json(tmp_path, name, content, line, says):
    (tmp_path / name).write_bytes(content)
    found = problems_of(tmp_path / name)
    assert found.startswith(f"{tmp_path / name}:{line}: ")
    with pytest.raises(ValueError, match=says):
        raise ValueError(found)


@pytest.mark.parametrize("content", [b"{}", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:30]])
def test_files_that_are_not_gzip(tmp_path, content):
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    assert problems_of(tmp_path / "a.jsonl.gz").startswith(f"{tmp_path / 'a.jsonl.gz'}: not whole gzip data")


def test_lines_of_a_list_are_those_its_records_begin_on(tmp_path):
    records = [{"text": "a\nb"}, {"text": "c"}, {"nested": {"x": [1, 2]}}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(records, indent=1))
    found = list(read(RecordSource((file,))))
    assert [value for _, value in found] == records
    assert [place for place, _ in found] == [f"{file}:2", f"{file}:5", f"{file}:8"]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]")])
def test_empty_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert problems_of(tmp_path / name).startswith(f"{tmp_path / name}: holds no record")


def test_what_check_sees_without_a_tokenizer(run, tmp_path):
    def problems(**keys):
        found = data.records.check(Config(**keys), run)
        assert all("\n" not in each for each in found)
        return found

    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(GOOD))
    assert problems(path=str(good)) == [] and problems(path="python_docstrings") == []
    assert "dataset.path is not set" in problems()[0]
    assert f"dataset.path: {tmp_path}/no.jsonl does not exist" in problems(path=f"{tmp_path}/no.jsonl")[0]
    assert "dataset.eval_path: /no/where does not exist" in problems(path=str(good), eval_path="/no/where")[0]
    (tmp_path / "x.csv").write_text("a,b\n")
    assert "is neither .jsonl nor .json" in problems(path=str(tmp_path / "x.csv"))[0]
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl or .json file" in problems(path=str(tmp_path / "empty"))[0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"body": "x"}))
    assert problems(path=str(bad))[0].startswith(f"{bad}:1: has neither")
    assert problems(path=str(bad), text_column="body") == []
    run.process.flash_attn = True
    assert "dataset.packing: true and flash_attn" in problems(path=str(good))[0]
    assert problems(path=str(good), packing=False) == []
    run.process.flash_attn, run.trainer = False, {"use_cache": True}
    assert "dataset.packing: true and use_cache" in problems(path=str(good))[0]
    assert problems(path=str(good), packing=False) == []
    run.process, run.trainer = SimpleNamespace(model_name_or_path=None), {}
    assert "no tokenizer is known" in problems(path=str(good))[0]
    assert problems(path=str(good), tokenizer="x") == []


def test_held_out_records_that_contradict(run, tmp_path):
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(json.dumps(GOOD))
    found = data.records.check(Config(path=str(tmp_path), eval_fraction=0.2), run)
    assert "dataset.eval_fraction 0.2 would hold out more than" in found[0]


def test_no_network_is_asked_for_what_looks_like_a_path(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = data.records.check(Config(path="someone/talks"), run)
    assert "needs the package datasets" in found[0]


def test_tokenizers_that_cannot_be_loaded(run, tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_text(json.dumps(GOOD))
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"not one")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    for name in ("folder", "x.gguf", "cut.gguf"):
        with pytest.raises(ValueError, match=f"tokenizer of .*{name} cannot be loaded") as caught:
            data.records.build(Config(path=str(path), tokenizer=str(tmp_path / name)), run)
        assert "\n" not in str(caught.value)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "folder" / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="has 2 .gguf files"):
        data.records.build(Config(path=str(path), tokenizer=str(tmp_path / "folder")), run)
