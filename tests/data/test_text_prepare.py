"""A prepared folder against the tokenizer applied to the whole text; interruptions, workers and disks that fill up."""

import errno
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from data.text import pieces, prepare_tokens, preparing
from data.text.preparing import PreparationSettings, prepare
from data.text.tokenizers import open_tokenizer, train_bpe

WORDS = ["the", "cat", "isn't", "on\tthe", "mat;\n\n", "", "«ça", "va»", "中文", "12345", "😀", "e\u0301", "to", "be"]


def some_text(seed: int, words: int = 2000) -> str:
    draw = np.random.default_rng(seed)
    return "".join(WORDS[integer] + " \n"[draw.random() < 0.1] for integer in draw.integers(len(WORDS), size=words))


@pytest.fixture
def small_pieces(monkeypatch):
    """Many pieces and chunks also in a small text, and a journal entry for each chunk."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 150)
    monkeypatch.setattr(pieces, "CUT_WINDOW", 100)
    monkeypatch.setattr(prepare_tokens, "CHUNK_CHARACTERS", 250)
    monkeypatch.setattr(preparing, "JOURNAL_SECONDS", 0)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(some_text(0), encoding="utf-8", newline="")
    return path


def tokens_of(folder: Path, split: str) -> list[int]:
    meta = json.loads((folder / "meta.json").read_text())
    return np.fromfile(folder / f"{split}.bin", {"uint16": "<u2", "uint32": "<u4"}[meta["dtype"]]).tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def some_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([some_text(1)], 400).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bytes", "bpe:400", "path"])
def test_one_file_is_split_by_characters_and_gives_the_tokens_of_the_whole(
    tmp_path, text_file, small_pieces, kind, some_tokenizer
):
    word, text = some_tokenizer if kind == "path" else kind, some_text(0)
    prepare(tmp_path / "set", PreparationSettings(str(text_file), word, val_fraction=0.2), report=quiet)
    tokenizer, meta = open_tokenizer(str(tmp_path / "set")), json.loads((tmp_path / "set/meta.json").read_text())
    kept = int(len(text) * 0.8)
    for split, part in (("train", text[:kept]), ("val", text[kept:])):
        ids = tokenizer(part)["input_ids"]
        assert tokens_of(tmp_path / "set", split) == ids
        assert meta["splits"][split] == {"tokens": len(ids), "bytes": len(part.encode())}
        assert tokenizer.decode(ids) == part
    assert (meta["vocab_size"], meta["dtype"]) == (len(tokenizer), "uint16")
    assert (meta["tokenizer"], meta["source"], meta["version"]) == (word, str(text_file), 1)
    assert not list(tmp_path.glob(".*")), "nothing is left beside the folder"


@pytest.mark.slow
def test_shakespeare_is_nanogpts(tmp_path, shared):
    path = shared / "data/tinyshakespeare.txt"
    text = path.read_text(encoding="utf-8")
    prepare(tmp_path / "set", PreparationSettings(str(path), "char"), report=quiet)
    numbers = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    expected = [numbers[symbol] for symbol in text]
    assert len(numbers) == 65
    train, val = (tokens_of(tmp_path / "set", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert train + val == expected


def test_bpe_learns_from_the_training_text_alone(tmp_path, small_pieces):
    (tmp_path / "text.txt").write_text("ab " * 900 + "xy " * 100)
    prepare(tmp_path / "set", PreparationSettings(str(tmp_path / "text.txt"), "bpe:280"), report=quiet)
    vocabulary = open_tokenizer(str(tmp_path / "set")).get_vocab()
    assert "Ġab" in vocabulary and "xy" not in vocabulary


@pytest.mark.slow
def test_bpe_learns_from_a_sample_of_a_large_text(tmp_path, text_file, small_pieces, monkeypatch):
    monkeypatch.setattr(preparing, "BPE_SAMPLE_BYTES", 5000)
    seen, lines, original = [], [], preparing.train_bpe
    monkeypatch.setattr(preparing, "train_bpe", lambda texts, n: original(seen.extend(texts) or seen, n))
    prepare(tmp_path / "set", PreparationSettings(str(text_file), "bpe:300"), report=lines.append)
    assert 2500 < sum(len(each.encode()) for each in seen) <= 5000
    assert any("is learnt from every" in line for line in lines)


@pytest.mark.slow
def test_a_vocabulary_beyond_uint16(tmp_path, text_file):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(70_000) if not 0xD800 <= code < 0xE000] + ["😀"]
    backend = Tokenizer(models.WordLevel({each: index for index, each in enumerate(characters)}, unk_token=" "))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "large")
    prepare(tmp_path / "set", PreparationSettings(str(text_file), str(tmp_path / "large")), report=quiet)
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert (meta["dtype"], meta["vocab_size"]) == ("uint32", len(characters))
    found = tokens_of(tmp_path / "set", "train") + tokens_of(tmp_path / "set", "val")
    assert "".join(characters[each] for each in found) == some_text(0)
    assert max(found) > 2**16


BOM_AND_CRLF = "\ufeffa\r\nb\rc\n\r\n\u00fc\ufeff" * 40


@pytest.mark.slow
@pytest.mark.parametrize("newlines", ["keep", "lf"])
@pytest.mark.parametrize("word", ["char", "bytes"])
def test_byte_order_marks_and_line_ends(tmp_path, small_pieces, monkeypatch, newlines, word):
    """As if the file had been cleaned before: also the split, and wherever blocks and pieces are cut."""
    (tmp_path / "text.txt").write_bytes(BOM_AND_CRLF.encode())
    clean = BOM_AND_CRLF[1:]
    if newlines == "lf":
        clean = clean.replace("\r\n", "\n").replace("\r", "\n")
    for size in (1, 2, 3, 7, 10**6):
        monkeypatch.setattr(pieces, "READ_BYTES", size)
        settings, lines = PreparationSettings(str(tmp_path / "text.txt"), word, newlines=newlines), []
        prepare(tmp_path / "set", settings, overwrite=True, report=lines.append)
        kept = int(len(clean) * 0.9)
        for split, part in (("train", clean[:kept]), ("val", clean[kept:])):
            assert open_tokenizer(str(tmp_path / "set")).decode(tokens_of(tmp_path / "set", split)) == part
        assert json.loads((tmp_path / "set/meta.json").read_text())["newlines"] == newlines
        assert any("120 carriage returns" in line for line in lines) == (newlines == "keep")
    with pytest.raises(ValueError, match="was prepared with newlines"):
        other = "lf" if newlines == "keep" else "keep"
        prepare(tmp_path / "set", PreparationSettings(str(tmp_path / "text.txt"), word, newlines=other), report=quiet)


def test_line_ends_of_documents(tmp_path, small_pieces):
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_bytes("\ufeffx\r\ny\r".encode())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/c.txt").write_bytes("\ufeff".encode())
    lines = [json.dumps({"text": "x\r\ny\r"})] * 2
    (tmp_path / "texts.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    for name in ("texts", "texts.jsonl"):
        settings = PreparationSettings(str(tmp_path / name), "bytes", val_fraction=0.5, newlines="lf")
        prepare(tmp_path / "set", settings, overwrite=True, report=quiet)
        assert bytes(tokens_of(tmp_path / "set", "train")) == bytes(tokens_of(tmp_path / "set", "val")) == b"x\ny\n\n"
    with pytest.raises(ValueError, match="holds no text file .left out: 1 empty."):
        prepare(tmp_path / "other", PreparationSettings(str(tmp_path / "empty"), "bytes"), report=quiet)


def test_a_reported_text(tmp_path, shared):
    """../shared/cases/records/bom.txt: neither the byte order mark nor, with lf, a carriage return is a symbol."""
    path = shared / "cases/records/bom.txt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    text = path.read_bytes().decode("utf-8-sig")
    for newlines in ("keep", "lf"):
        prepare(tmp_path / newlines, PreparationSettings(str(path), "char", newlines=newlines), report=quiet)
        vocabulary = set(open_tokenizer(str(tmp_path / newlines)).get_vocab())
        assert vocabulary == set(text) - ({"\r"} if newlines == "lf" else set()) and "\ufeff" not in vocabulary


def write_documents(folder: Path, count: int) -> list[str]:
    """`count` files, one of them larger than a piece; returns their texts in order."""
    texts = [some_text(number, 300 if number == 3 else 5) for number in range(count)]
    for number, text in enumerate(texts):
        path = folder / f"{number // 10}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("word", ["char", "bytes", "bpe:300"])
def test_of_many_documents_every_tenth_validates_and_each_is_ended(tmp_path, small_pieces, word):
    texts = write_documents(tmp_path / "texts", 33)
    prepare(tmp_path / "set", PreparationSettings(str(tmp_path / "texts"), word), report=quiet)
    tokenizer, meta = open_tokenizer(str(tmp_path / "set")), json.loads((tmp_path / "set/meta.json").read_text())
    of_split = {"train": [text for n, text in enumerate(texts) if n % 10 != 9], "val": texts[9::10]}
    for split, documents in of_split.items():
        if word.startswith("bpe"):
            ids = [id for text in documents for id in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
            size = sum(len(text.encode()) for text in documents)
        else:
            joined = "".join(f"{text}\n" for text in documents)
            ids, size = tokenizer(joined)["input_ids"], len(joined.encode())
        assert tokens_of(tmp_path / "set", split) == ids
        assert meta["splits"][split] == {"tokens": len(ids), "bytes": size}


@pytest.mark.slow
def test_a_given_validation_text(tmp_path, text_file, small_pieces):
    (tmp_path / "val.txt").write_text("never seen: ß", encoding="utf-8")
    prepare(
        tmp_path / "set", PreparationSettings(str(text_file), "char", val_text=str(tmp_path / "val.txt")), report=quiet
    )
    tokenizer = open_tokenizer(str(tmp_path / "set"))
    assert tokenizer.decode(tokens_of(tmp_path / "set", "train")) == some_text(0)
    assert tokenizer.decode(tokens_of(tmp_path / "set", "val")) == "never seen: ß"


def write_lines(path: Path, count: int = 40) -> None:
    lines = [json.dumps({"text": some_text(number, 60), "id": number}) for number in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_input(kind: str, tmp_path: Path) -> PreparationSettings:
    if kind == "folder":
        write_documents(tmp_path / "texts", 33)
    elif kind == "lines":
        write_lines(tmp_path / "texts.jsonl")
    else:
        (tmp_path / "texts.txt").write_text(some_text(0), encoding="utf-8", newline="")
        (tmp_path / "val.txt").write_text(some_text(5, 600), encoding="utf-8", newline="")
    name = {"folder": "texts", "lines": "texts.jsonl", "two files": "texts.txt"}[kind]
    given = {"val_text": str(tmp_path / "val.txt")} if kind == "two files" else {}
    return PreparationSettings(str(tmp_path / name), "bpe:300", **given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two files", "folder", "lines"])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(tmp_path, small_pieces, monkeypatch, kind):
    """Ctrl-C at different chunks, again and again, with what was written after the journal still in the files."""
    settings = write_input(kind, tmp_path)
    prepare(tmp_path / "whole" / "set", settings, report=quiet)
    original, appended, lines = prepare_tokens.Output.append, [], []

    def interrupted(self, tokens, written):
        if len(appended) in (2, 3, 7):
            appended.append(None)
            original(self, tokens, written)  # on its way into the files
            raise KeyboardInterrupt
        appended.append(tokens)
        return original(self, tokens, written)

    monkeypatch.setattr(prepare_tokens.Output, "append", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "parts" / "set", settings, report=lines.append)
        assert not (tmp_path / "parts/set").exists(), "absent until it is complete"
    prepare(tmp_path / "parts" / "set", settings, report=lines.append)
    assert contents(tmp_path / "parts/set") == contents(tmp_path / "whole/set")
    assert sum("going on after" in line for line in lines) == 3
    chunks = sum(each is not None for each in appended)
    monkeypatch.setattr(prepare_tokens.Output, "append", lambda *words: appended.append(1) or original(*words))
    appended.clear()
    prepare(tmp_path / "again" / "set", settings, report=quiet)
    assert chunks == len(appended), "no chunk was done twice"


def interrupt_after(monkeypatch, chunks: int) -> None:
    original, count = prepare_tokens.Output.append, iter(range(10**9))

    def append(self, *words):
        if next(count) == chunks:
            raise KeyboardInterrupt
        return original(self, *words)

    monkeypatch.setattr(prepare_tokens.Output, "append", append)


@pytest.mark.parametrize("change", ["text", "settings"])
def test_after_a_change_an_interrupted_preparation_starts_anew(tmp_path, text_file, small_pieces, monkeypatch, change):
    lines = []
    interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "set", PreparationSettings(str(text_file), "bytes"), report=quiet)
    monkeypatch.undo()
    if change == "text":
        text_file.write_text("something else", encoding="utf-8")
    word = "char" if change == "settings" else "bytes"
    prepare(tmp_path / "set", PreparationSettings(str(text_file), word), report=lines.append)
    assert any("since the interruption" in line for line in lines)
    tokens = tokens_of(tmp_path / "set", "train") + tokens_of(tmp_path / "set", "val")
    assert open_tokenizer(str(tmp_path / "set")).decode(tokens) == text_file.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two files", "lines"])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, small_pieces, kind):
    settings = write_input(kind, tmp_path)
    for count in (1, 2, 3):
        prepare(tmp_path / f"{count}" / "set", settings, num_workers=count, report=quiet)
    first = contents(tmp_path / "1/set")
    assert first == contents(tmp_path / "2/set") == contents(tmp_path / "3/set")


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line_and_ends_all(tmp_path, small_pieces, text_file):
    prepare(tmp_path / "first", PreparationSettings(str(text_file), "char"), report=quiet)
    text_file.write_text(some_text(0) + "ß" + some_text(0), encoding="utf-8")
    with pytest.raises(ValueError, match=r"text.txt after character \d+: the character 'ß' \(U\+00DF\) is not among"):
        prepare(
            tmp_path / "set", PreparationSettings(str(text_file), str(tmp_path / "first")), num_workers=2, report=quiet
        )
    assert not multiprocessing.active_children()
    assert sorted(os.listdir(tmp_path)) == ["first", "text.txt"]


def test_done_is_said_and_another_wish_is_refused(tmp_path, text_file, monkeypatch):
    settings, lines, folder = PreparationSettings(str(text_file), "bytes"), [], tmp_path / "set"
    prepare(folder, settings, report=quiet)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    prepare(folder, PreparationSettings("text.txt", "bytes"), report=lines.append)
    assert len(lines) == 1 and "is already prepared: " in lines[0] and "tokens of bytes, vocabulary 256" in lines[0]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for change, words in (
        ({"tokenizer": "char"}, "was prepared with tokenizer bytes, not char; --overwrite"),
        ({"val_fraction": 0.5}, "was prepared with val_fraction 0.1, not 0.5; --overwrite"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare(
                folder, PreparationSettings(**{"text": str(text_file), "tokenizer": "bytes"} | change), report=quiet
            )
    text_file.write_text("another text")
    with pytest.raises(ValueError, match=r"was prepared before .*text.txt changed; --overwrite"):
        prepare(folder, settings, report=quiet)
    prepare(folder, settings, overwrite=True, report=quiet)
    assert bytes(tokens_of(folder, "train") + tokens_of(folder, "val")) == b"another text"
    (folder / "train.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="was changed after it was prepared; --overwrite"):
        prepare(folder, settings, report=quiet)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, text_file, overwrite):
    settings = PreparationSettings(str(text_file), "bytes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    prepare(tmp_path / "set", settings, report=quiet)
    (tmp_path / "set/notes.txt").write_text("mine")
    for folder in (tmp_path / "mine", tmp_path / "set"):
        with pytest.raises(ValueError, match=f"{folder} holds notes.txt, which prepare.py did not write there"):
            prepare(folder, settings, overwrite=overwrite, report=quiet)
        assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        prepare(text_file, settings, report=quiet)
    (tmp_path / "empty").mkdir()
    prepare(tmp_path / "empty", settings, report=quiet)
    assert (tmp_path / "empty/meta.json").is_file()


def prepare_beside(folder, settings, log):
    with log.open("a") as lines:
        prepare(folder, settings, report=lambda line: print(line, file=lines, flush=True))


@pytest.mark.slow
def test_two_at_once_take_turns(tmp_path, text_file, small_pieces):
    folder, log = tmp_path / "set", tmp_path / "log"
    start = multiprocessing.get_context("fork").Process
    arguments = (folder, PreparationSettings(str(text_file), "char"), log)
    processes = [start(target=prepare_beside, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = log.read_text().splitlines()
    assert sum("is already prepared" in line for line in lines) == 2
    assert sum("bytes of text in" in line for line in lines) == 1
    assert sorted(os.listdir(tmp_path)) == ["log", "set", "text.txt"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_work_goes_on_later(tmp_path, text_file, small_pieces, monkeypatch):
    settings = PreparationSettings(str(text_file), "bytes")
    original, count = prepare_tokens.Output.append, iter(range(10**9))

    def append(self, *words):
        if next(count) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *words)

    monkeypatch.setattr(prepare_tokens.Output, "append", append)
    with pytest.raises(ValueError, match=r"the disk of .*preparing is full; free some space"):
        prepare(tmp_path / "set", settings, report=quiet)
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(prepare_tokens.Output, "append", original)
    lines = []
    prepare(tmp_path / "set", settings, report=lines.append)
    assert "going on after" in lines[0]
    assert bytes(tokens_of(tmp_path / "set", "train") + tokens_of(tmp_path / "set", "val")).decode() == some_text(0)


def test_a_folder_that_cannot_be_made(tmp_path, text_file):
    with pytest.raises(ValueError, match=r"text.txt: File exists"):
        prepare(text_file / "set", PreparationSettings(str(text_file), "bytes"), report=quiet)


@pytest.mark.parametrize("place", ["text.txt", "texts", "texts.jsonl"])
def test_a_text_that_fails_while_it_is_read_is_named(tmp_path, text_file, monkeypatch, place):
    """As a failing disk does: Python's error names no file."""
    write_documents(tmp_path / "texts", 33)
    write_lines(tmp_path / "texts.jsonl")
    opened, failing = Path.open, {"text.txt": "text.txt", "texts": "015.txt", "texts.jsonl": "texts.jsonl"}[place]

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        __next__ = read

    def open_(path, *words, **options):
        return Failing() if path.name == failing else opened(path, *words, **options)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(ValueError, match=rf"{failing}: Input/output error$") as caught:
        prepare(tmp_path / "set", PreparationSettings(str(tmp_path / place), "char"), report=quiet)
    assert "preparing" not in str(caught.value) and not (tmp_path / "set").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["learning", "saving"])
def test_interrupted_while_a_vocabulary_is_learnt_it_is_the_same_in_the_end(
    tmp_path, text_file, small_pieces, monkeypatch, when
):
    settings = PreparationSettings(str(text_file), "bpe:300")
    prepare(tmp_path / "whole" / "set", settings, report=quiet)

    def interrupted(*_):
        if when == "saving":
            (tmp_path / "parts/.set.preparing/data/tokenizer.json").write_text('{"model"')
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "train_bpe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "parts" / "set", settings, report=quiet)
    monkeypatch.undo()
    prepare(tmp_path / "parts" / "set", settings, report=quiet)
    assert contents(tmp_path / "parts/set") == contents(tmp_path / "whole/set")


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("", {}, "text.txt is empty"),
        ("ß", {}, "the train split is empty: .*text.txt has 1 characters and --val_fraction is 0.1"),
        ("abc", {"val_fraction": 1e-20}, "the val split is empty: .*text.txt has 3 characters"),
        (b"good \xff bad", {}, r"text.txt is not UTF-8 text: byte 0xff at offset 5"),
        (b"cut \xe4\xb8", {}, r"text.txt is not UTF-8 text: byte 0xe4 at offset 4"),
        ("abc", {"text_column": "body"}, "--text_column body is for JSON lines.*text.txt has no columns"),
        ("abc", {"split": "test"}, "--split test is for datasets of the hub"),
        ("abc", {"val_text": "nowhere.txt"}, "nowhere.txt does not exist"),
        ("abc", {"tokenizer": "byte"}, "unknown tokenizer `byte`; did you mean `bytes`?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, text, settings, words):
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as caught:
        prepare(
            tmp_path / "set", PreparationSettings(**{"text": str(path), "tokenizer": "bytes"} | settings), report=quiet
        )
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["text.txt"]
