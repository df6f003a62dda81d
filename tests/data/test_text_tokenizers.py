"""Tokenizers of text data: any text back exactly, also after saving; fast paths against the tokenizers themselves."""

import random
import unicodedata

import numpy as np
import pytest

from data.text.tokenizers import (
    END_OF_TEXT,
    block_encoder,
    bytes_tokenizer,
    char_tokenizer,
    check_word,
    open_tokenizer,
    train_bpe,
    vocabulary_size,
)

STRANGE = (
    "a b\n\r\n\t  é e\u0301 😀👨\u200d👩\u200d👧 \u200b\u00a0\ufeff z .  , don 't n't ' s\x00\x1c\u2028"
    f" {END_OF_TEXT} <unk> ##x ▁ Ġ Ċ 中文字 \U0010fffd"
)


def any_text(seed: int, length: int = 400) -> str:
    """Letters, spaces, and code points drawn from everywhere but the surrogates."""
    draw = random.Random(seed)
    codes = [draw.choice([draw.randrange(0x20, 0x7F), 0x20, 0x0A, draw.randrange(0xD800)]) for _ in range(length)]
    return "".join(chr(code) for code in codes) + chr(draw.randrange(0xE000, 0x110000))


TEXTS = [STRANGE, *(any_text(seed) for seed in range(5))]


def made(kind):
    if kind == "char":
        return char_tokenizer("".join(TEXTS))
    return bytes_tokenizer() if kind == "bytes" else train_bpe(["the cat sat on the mat " * 50, *TEXTS], 300)


@pytest.fixture(scope="module", params=["char", "bytes", "bpe"])
def pair(request, tmp_path_factory):
    """(a tokenizer, the same one saved and opened again, its folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = made(request.param)
    tokenizer.save_pretrained(folder)
    return tokenizer, open_tokenizer(str(folder)), folder


def test_any_text_comes_back_exactly_also_after_saving(pair):
    from transformers import PreTrainedTokenizerFast

    before, after, _ = pair
    for text in TEXTS:
        ids = before(text)["input_ids"]
        assert isinstance(after, PreTrainedTokenizerFast)
        assert after(text)["input_ids"] == ids
        assert before.decode(ids) == after.decode(ids) == text
        assert min(ids) >= 0 and max(ids) < vocabulary_size(after) == len(after)


def test_the_fast_path_gives_the_tokenizers_own_ids(pair):
    _, tokenizer, folder = pair
    found = block_encoder(folder)([text.encode() for text in TEXTS])
    assert [each.tolist() for each in found] == [
        tokenizer(text, split_special_tokens=True)["input_ids"] for text in TEXTS
    ]


@pytest.mark.parametrize("kind", ["char", "bytes"])
def test_characters_and_bytes_are_looked_up_in_a_table(kind, tmp_path):
    """Not by the tokenizer: it takes seconds for what the table does in milliseconds."""
    made(kind).save_pretrained(tmp_path)
    encode = block_encoder(tmp_path)
    assert not any("backend" in name for name in encode.__code__.co_freevars)


@pytest.mark.parametrize("order", [sorted, lambda symbols: sorted(symbols, reverse=True)])
def test_ids_of_characters_are_in_the_order_given(order):
    text = "hello, wörld\n"
    symbols = order(set(text))
    tokenizer = char_tokenizer(symbols)
    assert tokenizer(text)["input_ids"] == [symbols.index(each) for each in text]
    assert len(tokenizer) == len(symbols)


def test_a_combining_mark_is_a_character_of_its_own():
    composed = unicodedata.normalize("NFC", "e\u0301")
    assert len(char_tokenizer("e\u0301" + composed)("e\u0301" + composed)["input_ids"]) == 3


def test_ids_of_bytes_are_their_values():
    everything = "".join(map(chr, range(0x800))) + STRANGE
    assert bytes_tokenizer()(everything)["input_ids"] == list(everything.encode())
    assert len(bytes_tokenizer()) == 256


def test_an_unknown_character_is_an_error(tmp_path):
    tokenizer = char_tokenizer("ab\n")
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer("abc")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"character 'é' \(U\+00E9\) is not among the 3 symbols"):
        block_encoder(tmp_path)([b"ab", "aéb".encode()])


def test_bpe_of_the_same_text_is_the_same():
    texts = ["the cat sat on the mat, the hat " * 20, *TEXTS]
    assert train_bpe(texts, 320).backend_tokenizer.to_str() == train_bpe(texts, 320).backend_tokenizer.to_str()
    tokenizer = train_bpe(texts, 320)
    assert len(tokenizer) == 320 and tokenizer.eos_token == END_OF_TEXT
    assert len(tokenizer("the cat")["input_ids"]) == 2


def test_a_special_token_spelt_out_in_the_text_is_text(tmp_path):
    train_bpe(["the cat"], 257).save_pretrained(tmp_path)
    (ids,) = block_encoder(tmp_path)([END_OF_TEXT.encode()])
    assert open_tokenizer(str(tmp_path)).eos_token_id not in ids and len(ids) == len(END_OF_TEXT)


def test_a_single_file_is_opened_too(tmp_path):
    char_tokenizer("abc").save_pretrained(tmp_path)
    assert open_tokenizer(str(tmp_path / "tokenizer.json"))("cab")["input_ids"] == [2, 0, 1]


def test_another_tokenizer_keeps_to_its_own_ids_without_special_tokens(tmp_path):
    """Any tokenizer.json goes through the general path: here one that adds [CLS] and lowers letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "cat": 2, "a": 3}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", unk_token="[UNK]").save_pretrained(tmp_path)
    (ids,) = block_encoder(tmp_path)([b"A Cat dog"])
    assert ids.tolist() == [3, 2, 0] and ids.dtype == np.uint32


@pytest.mark.parametrize("word", ["bpe", "bpe:", "bpe:0", "bpe:256", "bpe:300k", "bpe:262145", "bpe:-5", "bpe:²"])
def test_sizes_of_bpe(word):
    with pytest.raises(
        ValueError, match=f"tokenizer `{word}`: write bpe:N with N tokens, such as bpe:4096; at least 257"
    ):
        check_word(word)


def test_a_size_of_thousands_of_digits_is_one_short_line():
    with pytest.raises(ValueError, match=r"^tokenizer `bpe:9{196} …`: write bpe:N") as caught:
        check_word("bpe:" + "9" * 5000)
    assert len(str(caught.value)) < 400


def test_words(tmp_path):
    for word in ("char", "bytes", "bpe:257", "bpe:262144", "gpt2", "org/name", str(tmp_path)):
        check_word(word)
    with pytest.raises(ValueError, match="unknown tokenizer `chra`; did you mean `char`?"):
        check_word("chra")
    with pytest.raises(ValueError, match="unknown tokenizer `./here`: no such path"):
        check_word("./here")


def test_what_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            open_tokenizer(str(path))
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded: .{20,}") as caught:
        open_tokenizer(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(":")
