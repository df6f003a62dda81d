"""What a language model reads of a prompt or a chat: what transformers renders, and what it read in training."""

import json
from types import SimpleNamespace

import pytest
import record_sets
import transformers
from record_sets import TALK, make_tokenizer

import data.records
import data.text
from data.records.chat import Encoder
from data.text.processor import Line, end_of_turn

PROCESS = SimpleNamespace(trust_remote_code=False)
TEMPLATES = ("CHATML", "MARKED", "TRIMMED", "LLAMA", "GEMMA")


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def read(processor, record):
    """Token ids of a record that a file's line holds."""
    content = json.dumps(record, ensure_ascii=False) if isinstance(record, dict) else record
    return processor.encode(Line("in.jsonl:1", content.encode(), isinstance(record, dict))).ids


def rendered(tokenizer, messages, **inputs):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **inputs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_read_as_in_training_up_to_the_answer(tokenizer, name):
    """Without its last answer, whether the record has that or not."""
    tokenizer.chat_template = getattr(record_sets, name)
    processor = data.records.Processor(tokenizer)
    expected = rendered(tokenizer, TALK[:3])
    assert read(processor, {"messages": TALK}) == read(processor, {"messages": TALK[:3]}) == expected
    trained = Encoder(tokenizer, "assistant", None)({"messages": TALK}, "x:1")
    first = len(expected)
    assert trained.ids[:first].tolist() == expected and trained.learned[first:].any()
    last_turn = trained.learned[first - 1 :].tolist()
    assert not last_turn[0] and last_turn[1]  # the first token to learn of it is the first to predict


def test_every_form_of_a_record(tokenizer):
    processor, user = data.records.Processor(tokenizer), [{"role": "user", "content": "And an ant?"}]
    expected = rendered(tokenizer, user)
    for record in (
        {"prompt": "And an ant?"},
        {"prompt": "And an ant?", "completion": "Six."},
        {"prompt": user},
        {"prompt": user, "completion": [{"role": "assistant", "content": "Six."}]},
        {"conversations": [{"from": "human", "value": "And an ant?"}]},
        {"instruction": "And an ant?"},
        {"instruction": "And an ant?", "output": "Six.", "input": ""},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "And an ant?"}]}]},
    ):
        assert read(processor, record) == expected, record
    system = rendered(tokenizer, [{"role": "system", "content": "Count."}, *user])
    assert read(processor, {"messages": user, "system": "Count."}) == system


def test_tools_and_template_variables_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ tools | tojson if tools }}{{ mood }}" + record_sets.CHATML
    tools, user = [{"type": "function", "function": {"name": "count"}}], TALK[:1]
    record = {"messages": user, "tools": tools, "chat_template_kwargs": {"mood": "kind"}}
    expected = rendered(tokenizer, user, tools=tools, mood="kind")
    for module in (data.records, data.text):
        assert read(module.Processor(tokenizer), record) == expected
    assert "count" in tokenizer.decode(expected) and "kind" in tokenizer.decode(expected)


def test_text_is_continued_as_it_was_trained(tokenizer):
    """A text kind trains on bare tokens; records on what the tokenizer puts around a text, here a first token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 3)]
    )
    bare = tokenizer("six legs", add_special_tokens=False)["input_ids"]
    assert read(data.text.Processor(tokenizer), {"text": "six legs"}) == bare
    assert read(data.text.Processor(tokenizer), "six legs\r\n") == bare
    records = data.records.Processor(tokenizer)
    assert read(records, {"text": "six legs"}) == [1, *bare]
    assert read(data.records.Processor(tokenizer, "body"), {"body": "six legs", "text": "no"}) == [1, *bare]
    tokenizer.chat_template = None
    assert read(data.records.Processor(tokenizer), {"prompt": "six legs"}) == [1, *bare]


@pytest.mark.parametrize("name", [*TEMPLATES, "OPEN"])
def test_the_token_that_ends_a_turn(tokenizer, name):
    tokenizer.chat_template = getattr(record_sets, name)
    token = end_of_turn(tokenizer)
    expected = {"LLAMA": "<|eot|>", "OPEN": None}.get(name, "<|im_end|>")
    assert (None if token is None else tokenizer.convert_ids_to_tokens(token)) == expected
    ends = {token, tokenizer.eos_token_id} - {None}
    assert data.text.Processor(tokenizer).ends == data.records.Processor(tokenizer).ends == ends


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "`messages`"),
        ({"messages": TALK[1:2]}, "no message to answer"),
        ({"messages": "hello"}, "`messages`"),
        ({"messages": [{"content": "hello"}]}, "role"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, ""),
        ({"question": "hello"}, "question"),
    ],
)
@pytest.mark.parametrize("module", [data.records, data.text])
def test_records_that_cannot_be_answered(tokenizer, module, record, reason):
    with pytest.raises(ValueError) as caught:
        read(module.Processor(tokenizer), record)
    assert reason in str(caught.value) and not str(caught.value).startswith(("record: ", "x:"))


def test_the_saved_tokenizer_is_enough(tokenizer, tmp_path):
    tokenizer.chat_template = record_sets.MARKED
    data.records.Processor(tokenizer).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt"}')
    config = data.records.Config(text_column="body")
    loaded = data.records.Processor.from_pretrained(tmp_path, config, PROCESS)
    assert read(loaded, {"body": "six"}) == tokenizer("six")["input_ids"]
    record = {"messages": TALK}
    plain = data.text.Processor.from_pretrained(tmp_path, None, PROCESS)
    assert read(plain, record) == read(data.records.Processor(tokenizer), record)
    assert isinstance(plain.tokenizer, transformers.PreTrainedTokenizerFast)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded"):
        data.text.Processor.from_pretrained(tmp_path, None, PROCESS)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        data.text.Processor.from_pretrained(tmp_path / "none", None, PROCESS)
