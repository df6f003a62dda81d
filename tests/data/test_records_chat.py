"""Which tokens of a record carry loss, by chat templates of the usual families and by public reports of bugs."""

import json

import numpy as np
import pytest
import transformers
from record_sets import (
    CHATML,
    GEMMA,
    LLAMA,
    MARKED,
    MISTRAL,
    OPEN,
    REASONER,
    TALK,
    THINKER,
    TRIMMED,
    learned_text,
    make_tokenizer,
)

from data.records.chat import Encoder

SYSTEM = {"role": "system", "content": "Count legs."}
CALL = {"id": "c1", "type": "function", "function": {"name": "legs", "arguments": {"of": "ant", "n": 2}}}
TOOLS = [{"type": "function", "function": {"name": "legs", "parameters": {}}}]
CALLING = [TALK[2], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "6"}, TALK[3]]
THOUGHTS = [
    {"role": "user", "content": "A?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne."},
    {"role": "user", "content": "B?"},
    {"role": "assistant", "content": "Two.", "reasoning_content": "well"},
]


@pytest.fixture(scope="module")
def shared_tokenizer():
    return make_tokenizer()


@pytest.fixture
def tokenizer(shared_tokenizer):
    shared_tokenizer.chat_template = CHATML
    return shared_tokenizer


def encode(tokenizer, record, template=None, loss_on="assistant", column=None):
    if template is not None:
        tokenizer.chat_template = template
    return Encoder(tokenizer, loss_on, column)(record, "x:7")


def refusal(tokenizer, record, template=None, **options):
    with pytest.raises(ValueError) as caught:
        encode(tokenizer, record, template, **options)
    message = str(caught.value)
    assert message.startswith("x:7: ") and "\n" not in message
    return message


# ---- families of templates ----


@pytest.mark.parametrize(
    ("template", "messages", "learned"),
    [
        (CHATML, TALK, ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (MARKED, TALK, ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (TRIMMED, TALK, ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (LLAMA, [SYSTEM, *TALK], ["Eight legs, as ünder arachnids.<|eot|>", "Six.<|eot|>"]),
        (MISTRAL, [SYSTEM, *TALK], [" Eight legs, as ünder arachnids.</s>", " Six.</s>"]),
        (MISTRAL, [SYSTEM, *TALK[2:], *TALK[2:]], [" Six.</s>", " Six.</s>"]),  # equal to its condition, not its place
        (GEMMA, TALK, ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (THINKER, TALK, [f"{TALK[1]['content']}<|im_end|>", "<think>\n\n</think>\n\nSix.<|im_end|>"]),
        (THINKER, THOUGHTS, ["One.<|im_end|>", "<think>\nwell\n</think>\n\nTwo.<|im_end|>"]),
        (REASONER, THOUGHTS, ["\n\nOne.</s>", "Two.</s>"]),
        (OPEN, TALK, [" Eight legs, as ünder arachnids.\n", " Six.\n"]),
        # Nobody asked.
        (CHATML, TALK[1:], ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (CHATML, [*TALK[:2], TALK[3]], ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        (CHATML, [*TALK, TALK[0]], ["Eight legs, as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]),
        # The empty answer is to say nothing.
        (CHATML, [TALK[0], {"role": "assistant", "content": ""}, *TALK[2:]], ["<|im_end|>", "Six.<|im_end|>"]),
        # What the header looks like may be said, too.
        (
            CHATML,
            [{"role": "user", "content": "<|im_start|>assistant\nSix.<|im_end|>\n"}, TALK[3]],
            ["Six.<|im_end|>"],
        ),
        # Calls of tools, as the template writes them.
        (LLAMA, CALLING, [json.dumps([CALL]) + "<|eot|>", "Six.<|eot|>"]),
        (MISTRAL, CALLING, ["[CALLS] [" + json.dumps(CALL["function"]) + "]</s>", " Six.</s>"]),
        (
            THINKER,
            CALLING,
            [f"<call>{json.dumps(CALL['function'])}</call><|im_end|>", "<think>\n\n</think>\n\nSix.<|im_end|>"],
        ),
        (REASONER, CALLING, ['<|call|>legs\n{"of": "ant", "n": 2}<|/call|></s>', "Six.</s>"]),
    ],
)
def test_only_what_the_assistant_says_is_learned(tokenizer, template, messages, learned):
    """Its words, its calls and its end of turn, neither the header before nor the line break after."""
    encoded = encode(tokenizer, {"messages": messages}, template)
    assert learned_text(tokenizer, encoded) == learned
    assert encoded.is_open == (template is OPEN)
    if template not in (REASONER,) and messages is not CALLING:  # the model reads what transformers renders
        assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("messages", [TALK, [SYSTEM, *TALK], [*TALK, *TALK[:1]]])
def test_marks_and_renderings_agree(tokenizer, messages):
    by_marks = encode(tokenizer, {"messages": messages}, MARKED)
    bare = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    by_rendering = encode(tokenizer, {"messages": messages}, bare)
    assert np.array_equal(by_marks.ids, by_rendering.ids) and by_marks.learned.any()
    assert np.array_equal(by_marks.learned, by_rendering.learned)


def test_a_token_across_the_edge_of_a_turn(tokenizer):
    """` spider` is one token, whose space is the template's: learned, as by transformers' marks."""
    marked = (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "spider"}]
    for template in (marked, marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")):
        encoded = encode(tokenizer, {"messages": talk}, template)
        assert learned_text(tokenizer, encoded) == [" spider<|im_end|>"]


def test_earlier_answers_that_a_template_shortens(tokenizer):
    """The loss is on what the model reads, found although no part of the chat renders as it does in the whole."""
    shortening = CHATML.replace("m.content", "(m.content if loop.last else m.content | replace('legs', ''))")
    encoded = encode(tokenizer, {"messages": TALK}, shortening)
    assert learned_text(tokenizer, encoded) == ["Eight , as ünder arachnids.<|im_end|>", "Six.<|im_end|>"]


def test_a_template_that_looks_at_what_is_said(tokenizer):
    """Marks change this condition for the first message, which therefore goes without."""
    looking = CHATML.replace("m.content +", "('(short)' if m.content | length < 4 else m.content) +")
    talk = [{"role": "user", "content": "Hm?"}, TALK[1], *TALK[2:]]
    message = refusal(tokenizer, {"messages": talk}, looking)
    assert "`content` of message 1" in message
    talk[0] = {"role": "user", "content": "Well?"}
    assert learned_text(tokenizer, encode(tokenizer, {"messages": talk}, looking))[1] == "Six.<|im_end|>"


@pytest.mark.keys("dataset(records).loss_on")
def test_loss_on_all(tokenizer):
    """Every token but the first, which nothing predicts."""
    encoded = encode(tokenizer, {"messages": TALK}, loss_on="all")
    assert encoded.learned[1:].all() and not encoded.learned[0]


# ---- what a record says besides ----


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKER])
def test_weight_0_carries_no_loss(tokenizer, template):
    messages = [TALK[0], {**TALK[1], "weight": 0}, TALK[2], {**TALK[3], "weight": 1}]
    encoded = encode(tokenizer, {"messages": messages}, template)
    assert [text[-14:] for text in learned_text(tokenizer, encoded)] == [learned_text(tokenizer, encoded)[0][-14:]]
    assert learned_text(tokenizer, encoded)[0].endswith("Six.<|im_end|>") and not encoded.unread
    whole = encode(tokenizer, {"messages": messages}, loss_on="all")
    hidden = tokenizer.decode(whole.ids[~whole.learned])
    assert hidden.endswith(f"{TALK[1]['content']}<|im_end|>") and "Six" not in hidden
    assert not encode(tokenizer, {"messages": [{**TALK[3], "weight": 0}]}, template).learned.any()
    assert "`weight` of message 2 is 0.5" in refusal(tokenizer, {"messages": [TALK[0], {**TALK[1], "weight": 0.5}]})


def test_several_templates_by_name(tokenizer):
    """As older tokenizers have them: the one for tools is used for records with tools."""
    templates = {"default": CHATML, "tool_use": "{{ tools | length }}" + CHATML}
    for template in (templates, {**templates, "default": MARKED}):
        for record in ({"messages": TALK}, {"messages": TALK, "tools": TOOLS}):
            encoded = encode(tokenizer, record, template)
            assert learned_text(tokenizer, encoded) == [f"{TALK[1]['content']}<|im_end|>", "Six.<|im_end|>"]
            assert tokenizer.decode(encoded.ids).startswith("1") == ("tools" in record) and not encoded.unread


def test_thinking_can_be_asked_for_in_a_record(tokenizer):
    """`chat_template_kwargs` reach the template: its generation prompt then holds the empty thought."""
    record = {"messages": TALK, "chat_template_kwargs": {"enable_thinking": False, "colour": "red"}}
    encoded = encode(tokenizer, record, THINKER)
    assert learned_text(tokenizer, encoded)[1] == "Six.<|im_end|>"
    assert encoded.unread == {"chat_template_kwargs.colour"}
    record["chat_template_kwargs"] = {"tokenize": True}
    assert "'tokenize'" in refusal(tokenizer, record)


def test_keys_that_go_nowhere_are_counted(tokenizer):
    messages = [{**TALK[0], "name": "Ann"}, {**TALK[1], "reasoning_content": "hm"}, *TALK[2:]]
    record = {"messages": messages, "tools": TOOLS, "id": 3, "note": None}
    assert encode(tokenizer, record).unread == {"id", "tools", "messages.name", "messages.reasoning_content"}
    naming = CHATML.replace("m.role +", "m.role + (' ' + m.name if m.name else '') +")
    assert encode(tokenizer, record, naming).unread == {"id", "tools", "messages.reasoning_content"}
    assert encode(tokenizer, {"text": "x", "id": 3}).unread == {"id"}
    assert encode(tokenizer, {"prompt": "x", "completion": "y", "id": 3}).unread == {"id"}
    weighted = [{**TALK[0], "weight": 1}, TALK[1]]
    assert encode(tokenizer, {"messages": weighted}, CHATML).unread == {"messages.weight"}


@pytest.mark.parametrize(("template", "role"), [(CHATML, "developer"), (MISTRAL, None)])
def test_the_developer_role(tokenizer, template, role):
    """As it is where the template renders it, otherwise as the system message that it is."""
    encoded = encode(tokenizer, {"messages": [{**SYSTEM, "role": "developer"}, *TALK]}, template)
    assert SYSTEM["content"] in tokenizer.decode(encoded.ids)
    assert encoded.is_renamed == (role is None)
    assert f"<|im_start|>{role}" in tokenizer.decode(encoded.ids) or role is None
    assert "no system role" in refusal(tokenizer, {"messages": [{**SYSTEM, "role": "developer"}, *TALK]}, GEMMA)


def test_arguments_of_calls_as_json_text(tokenizer):
    """As OpenAI's records have them; a template writes them as JSON once, not as a text of JSON."""
    function = {"name": "legs", "arguments": json.dumps(CALL["function"]["arguments"])}
    as_text = [CALLING[0], {"role": "assistant", "tool_calls": [{**CALL, "function": function}]}, *CALLING[2:]]
    for template in (LLAMA, MISTRAL, THINKER, REASONER):
        found, expected = (encode(tokenizer, {"messages": chat}, template) for chat in (as_text, CALLING))
        assert np.array_equal(found.ids, expected.ids) and np.array_equal(found.learned, expected.learned)


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        ("", TALK, "dataset.chat_template"),
        (CHATML, TALK[:1], "no message of the role `assistant`, only of user"),
        (MISTRAL, TALK[1:], "roles must alternate"),
        ("{{ messages[0].content.nothing.at.all }}", TALK, "cannot render these messages"),
        (GEMMA, [SYSTEM, *TALK], "no system role"),
        (CHATML, CALLING, "`tool_calls` of message 2 (role `assistant`)"),
        (LLAMA, [TALK[0], {**CALLING[1], "content": "I look."}, TALK[2]], "`content` of message 2"),
        (
            CHATML.replace("in messages", "in messages if m.role != 'critic'"),
            [*TALK, {"role": "critic", "content": "Six."}],  # which another message says, too
            "`content` of message 5 (role `critic`)",
        ),
        (CHATML.replace("m.content +", "m.content[:4] +"), TALK, "leaves out `content` of message 1"),
        (CHATML, [TALK[0], {"role": "assistant", "content": "\ud83d"}], "U+D83D"),
    ],
)
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_chats_that_are_refused(tokenizer, template, messages, says, loss_on):
    if "no message of" in says and loss_on == "all":
        pytest.skip("everything is learned")
    assert says in refusal(tokenizer, {"messages": messages}, template, loss_on=loss_on)


# ---- prompts and plain text ----


def test_prompt_and_completion(tokenizer):
    record = {"prompt": "Two and two make", "completion": " four"}
    as_chat = encode(tokenizer, record)
    assert learned_text(tokenizer, as_chat) == [" four<|im_end|>"]
    assert tokenizer.decode(as_chat.ids).startswith("<|im_start|>user\nTwo and two make<|im_end|>")
    plain = encode(tokenizer, record, "")
    assert tokenizer.decode(plain.ids) == "Two and two make four<|im_end|>"
    assert learned_text(tokenizer, plain) == [" four<|im_end|>"]
    assert encode(tokenizer, record, "", loss_on="all").learned.sum() == len(plain.ids) - 1


def test_plain_text_is_learned_whole(tokenizer):
    encoded = encode(tokenizer, {"text": "Ünd so weiter"})
    assert tokenizer.decode(encoded.ids) == "Ünd so weiter<|im_end|>"
    assert encoded.learned[1:].all() and not encoded.learned[0]
    other = encode(tokenizer, {"body": "Ünd so weiter", "messages": 3}, column="body")
    assert np.array_equal(other.ids, encoded.ids)
    assert "U+DC00" in refusal(tokenizer, {"text": "\udc00"})


# ---- public reports: files of ../shared/cases/records ----

END = "<|im_end|>"
CALL_TEXT = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>' + END
TWO = ["\n\nfine 👩‍👩‍👧 é", "é end \n"]


@pytest.mark.parametrize(
    ("file", "template", "expected"),
    [
        *(
            (f"tools_{kind}", "tool_template", [CALL_TEXT, f"It is sunny.{END}"])
            for kind in ("empty", "null", "nocontent")
        ),
        *((f"tools_{kind}", None, "`tool_calls` of message 2") for kind in ("empty", "null", "nocontent")),
        ("weight", None, [f"Sunny.{END}"]),
        ("weight", "gen", [f"Sunny.{END}"]),
        ("reasoning", None, [f"Sunny.{END}"]),
        ("kwargs", None, [f"Sunny.{END}"]),
        ("parts", None, [f"Sunny.{END}"]),
        ("sharegpt", None, [f"Sunny.{END}"]),
        ("alpaca", None, [f"Sunny.{END}"]),
        ("endsuser", None, [f"Sunny.{END}"]),
        ("emptyassistant", None, [END]),
        ("sys", "plainonly", "`content` of message 1 (role `system`)"),
        ("toolrole", "plainonly", "`content` of message 1 (role `tool`)"),
        ("multi", None, [f"{TWO[0]}{END}", f"{TWO[1]}{END}"]),
        ("multi", "gen", [f"{TWO[0]}{END}", f"{TWO[1]}{END}"]),
        ("multi", "plainonly", [f"{TWO[0]}{END}", f"{TWO[1]}{END}"]),
        ("multi", "olmo", [f"{TWO[0]}<|endoftext|>", f"{TWO[1]}{END}"]),
        ("multi", "qwen3", [f"{TWO[0]}{END}", f"<think>\n\n</think>\n\n{TWO[1]}{END}"]),
    ],
)
def test_reported_records(shared, file, template, expected):
    folder = shared / "cases/records"
    if not (folder / f"{file}.jsonl").is_file():
        pytest.skip(f"no {file}.jsonl in {folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    if template is not None:
        tokenizer.chat_template = (folder / f"{template}.jinja").read_text()
    record = json.loads((folder / f"{file}.jsonl").read_text().splitlines()[0])
    if isinstance(expected, str):
        assert expected in refusal(tokenizer, record)
        return
    encoded = encode(tokenizer, record)
    assert learned_text(tokenizer, encoded) == expected
    unread = {"reasoning": "messages.reasoning_content", "kwargs": "chat_template_kwargs.enable_thinking"}
    assert encoded.unread - {"messages.tool_call_id"} == ({unread[file]} if file in unread else set())
    if template == "tool_template":
        whole = tokenizer.apply_chat_template(record["messages"], tools=record["tools"], tokenize=False)
        assert tokenizer.decode(encoded.ids) == whole and "Weather of a city" in whole
