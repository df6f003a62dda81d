"""Where texts come from: what is read, in which pieces, and what is refused."""

import importlib.machinery
import json
import os
import sys
import types
from fractions import Fraction

import numpy as np
import pytest

from data.text import pieces, sources
from data.text.pieces import TextFacts, cut_of, pieces_of, split_of
from data.text.sources import Folder, JsonLines, Rows, TextFile, open_source

TENTH = Fraction(1, 10)


def texts_of(source, share="train"):
    """The documents, put together from their pieces."""
    documents, parts = [], []
    for piece in source.pieces(source.survey(share, TextFacts(False)), share):
        parts.append(piece.text)
        if piece.ends:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


@pytest.mark.parametrize("block_size", [1, 5, 16, 17, 10**6])
def test_pieces_are_the_text(monkeypatch, block_size):
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 16)
    monkeypatch.setattr(pieces, "CUT_WINDOW", 12)
    for text in ("a b c " * 20, "word " * 30, "abcdefgh" * 9, "中文字漢" * 30, "é e\u0301 ü\n" * 20, "\n" * 99, ""):
        blocks = [text[begin : begin + block_size] for begin in range(0, len(text), block_size)]
        found = list(pieces_of(blocks, "val", "x"))
        assert "".join(piece.text for piece in found) == text
        assert all(0 < len(piece.text) <= 16 and (piece.split, piece.place) == ("val", "x") for piece in found)
        assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True] * bool(found)


@pytest.mark.parametrize(
    ("block", "before"),
    [
        ("one two thr", "one two"),  # the space belongs to the word that follows
        ("one two  ", "one"),  # not inside a run of spaces
        ("one two,\n  x", "one"),
        ("first line\nse", "first"),
        ("first\nsecond\nthi", "first\nsecond"),
        ("nothing", "nothing"),
        ("one \u0301two x \u0301", "one \u0301two"),  # a mark that joins the space
    ],
)
def test_a_cut_lies_before_a_space_between_words(block, before):
    assert block[: cut_of(block)] == before


def test_documents_are_held_out_evenly():
    assert [n for n in range(40) if split_of(n, TENTH) == "val"] == [9, 19, 29, 39]
    for share in (Fraction(1, 3), Fraction(3, 10), Fraction(7, 100), Fraction(1, 2)):
        held = np.cumsum([split_of(n, share) == "val" for n in range(500)])
        assert all(count == int((n + 1) * share) for n, count in enumerate(held))
    assert split_of(9, "train") == "train" and split_of(0, "val") == "val"


def test_a_file_is_split_at_a_character(tmp_path, monkeypatch):
    """Wherever the blocks of the reading pass fall."""
    text = "aé中😀\r\n" * 50
    (tmp_path / "t.txt").write_bytes(text.encode())
    for size in (1, 2, 3, 5, 64, 10**6):
        monkeypatch.setattr(pieces, "READ_BYTES", size)
        facts, source, share = TextFacts(True), TextFile(tmp_path / "t.txt"), Fraction("0.37")
        parts = {"train": "", "val": ""}
        for piece in source.pieces(source.survey(share, facts), share):
            parts[piece.split] += piece.text
        kept = int(len(text) * (1 - 0.37))
        assert parts == {"train": text[:kept], "val": text[kept:]}
        assert facts.symbols() == sorted(set(text))


def write_tree(folder):
    """Two texts, and everything that is left out."""
    for name, content in {
        "b/one.txt": b"first",
        "b.txt": "zweite ü".encode(),
        "a/x/deep": b"third",
        "binary.bin": b"ab\0cd",
        "latin.txt": b"caf\xe9",
        "empty.txt": b"",
        ".hidden": b"no",
        ".git/config": b"no",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe")


def test_a_folder_gives_its_text_files_in_order_and_says_what_it_left_out(tmp_path):
    write_tree(tmp_path / "tree")
    source, facts = Folder(tmp_path / "tree"), TextFacts(True)
    assert texts_of(source) == ["third", "first", "zweite ü"]
    survey = source.survey("train", facts)
    assert survey["note"] == (
        f"{tmp_path}/tree: 3 text files; left out: 2 hidden, 2 links, 1 special, 2 binary, 1 empty"
    )
    assert facts.symbols() == sorted(set("thirdfirstzweite ü")), "none of a file that is left out"


def test_a_folder_by_ending_and_without_some_subfolders(tmp_path):
    write_tree(tmp_path / "tree")
    assert texts_of(open_source(str(tmp_path / "tree"), only=".txt", without=("b",))) == ["zweite ü"]


def test_a_folder_knows_when_it_changed(tmp_path):
    write_tree(tmp_path / "tree")
    before = Folder(tmp_path / "tree").identity()
    assert Folder(tmp_path / "tree").identity() == before
    (tmp_path / "tree/b/one.txt").write_text("other")
    os.utime(tmp_path / "tree/b/one.txt", ns=(1, 1))
    assert Folder(tmp_path / "tree").identity() != before


def test_too_few_documents_for_a_validation_split(tmp_path):
    write_tree(tmp_path / "tree")
    source = Folder(tmp_path / "tree")
    survey = source.survey(TENTH, TextFacts(False))
    pieces = [(piece.split, piece.text) for piece in source.pieces(survey, TENTH)]
    assert pieces == [("train", "third"), ("train", "first"), ("val", "zweite ü")]  # at least one
    (tmp_path / "one").mkdir()
    (tmp_path / "one/only.txt").write_text("alone")
    with pytest.raises(ValueError, match="the val split is empty: .* has 1 documents and --val_fraction is 0.1"):
        Folder(tmp_path / "one").survey(TENTH, TextFacts(False))
    (tmp_path / "none").mkdir()
    (tmp_path / "none/x").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"none holds no text file \(left out: 1 binary\)"):
        Folder(tmp_path / "none").survey(TENTH, TextFacts(False))


def test_too_few_lines_for_a_validation_split(tmp_path):
    """Of lines and rows as of files; with enough of them only so many are read."""

    def splits(texts):
        (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        found = []
        for source in (JsonLines([tmp_path / "x.jsonl"], "text"), Rows("table", Table({"text": texts}), "text", None)):
            survey = source.survey(TENTH, TextFacts(False))
            found.append([(piece.split, piece.text) for piece in source.pieces(survey, TENTH)])
        assert found[0] == found[1]
        return found[0]

    assert splits(["a", "", "b", None, "c"]) == [("train", "a"), ("train", "b"), ("val", "c")]
    assert [split for split, _ in splits(["x"] * 19)] == ["train"] * 9 + ["val"] + ["train"] * 9
    assert splits(["only"]) == [("train", "only")]  # refused once it is tokenized


def test_json_lines(tmp_path):
    records = [{"text": "one"}, {"text": "", "n": 1}, {"text": "zwei ü\n😀"}, {"text": None}, {"text": "three"}]
    lines = [json.dumps(records[0]), "", *map(json.dumps, records[1:])]
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        assert texts_of(open_source(str(tmp_path / name))) == ["one", "zwei ü\n😀", "three"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": "x", "text": 1}) + "\n")
    assert texts_of(open_source(str(tmp_path / "c.jsonl"), column="body")) == ["x"]


def test_a_folder_of_json_lines_is_read_by_its_lines(tmp_path):
    for number in (2, 1):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": f"of {number}"}) + "\n")
    source = open_source(str(tmp_path))
    assert isinstance(source, JsonLines) and texts_of(source) == ["of 1", "of 2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"x.jsonl:2: not JSON"),
        ("[1]", r"x.jsonl:2 has no `text`; it has no keys \(list\)"),
        ('{"body": "x", "id": 1}', r"x.jsonl:2 has no `text`; it has body, id: --text_column"),
        ('{"text": 3}', r"x.jsonl:2: `text` is int, not text"),
        ('{"text": "\\ud83d"}', r"x.jsonl:2: `text` holds half a character \(U\+D83D\)"),
        (b'{"text": "\xff"}', r"x.jsonl:2: not JSON"),
        ('{"text": ' + "[" * 100_000, r"x.jsonl:2: not JSON \(lists or objects are nested too deeply"),
        ('{"text": "x", "id": ' + "9" * 5000 + "}", r"JSON \(a number has more than 4,300 digits"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, words):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=words) as caught:
        texts_of(open_source(str(tmp_path / "x.jsonl")))
    assert "\n" not in str(caught.value)


def test_pieces_are_the_same_every_time(tmp_path, monkeypatch):
    """So that an interrupted preparation can continue after any number of them."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 20)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 2)
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/long.txt").write_text("a good many words, more than one piece takes " * 4)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": "some words " * n}) + "\n" for n in (1, 9, 0, 4)))
    (tmp_path / "y.jsonl").write_text(json.dumps({"text": "the last"}) + "\n")
    table = Table({"text": ["some words " * n for n in (3, 0, 7, 1, 2)]})
    for source in (
        TextFile(tmp_path / "tree/long.txt"),
        Folder(tmp_path / "tree"),
        JsonLines([tmp_path / "x.jsonl", tmp_path / "y.jsonl"], "text"),
        Rows("table", table, "text", None),
    ):
        survey = json.loads(json.dumps(source.survey(Fraction(1, 2), TextFacts(False))))
        found = list(source.pieces(survey, Fraction(1, 2)))
        assert len(found) > 4 and found == list(source.pieces(survey, Fraction(1, 2)))


class Table:
    """What is used of a `datasets.Dataset`."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)
        self.data = types.SimpleNamespace(nbytes=100)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows):
        return {name: values[rows] for name, values in self.columns.items()}

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names})


@pytest.fixture
def hub(monkeypatch):
    """A `datasets` package with one data set, and what it was asked for."""
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] != "org/stories":
            raise FileNotFoundError(f"Dataset '{arguments[0]}' doesn't exist on the Hub\nor cannot be accessed.")
        return Table({"text": ["one", "two"], "id": [1, 2]})

    package = types.ModuleType("datasets")
    package.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    return asked


def test_a_dataset_of_the_hub(hub):
    source = open_source("org/stories:short", split="validation")
    assert hub == [(("org/stories", "short"), {"split": "validation"})]
    hub.clear()
    assert texts_of(open_source("org/stories")) == ["one", "two"]
    assert hub == [(("org/stories", None), {"split": "train"})]
    assert source.identity() == {"dataset": "org/stories:short", "split": "validation", "rows": 2}
    with pytest.raises(ValueError, match="org/stories has no column `body`; it has text, id: --text_column"):
        open_source("org/stories", column="body")
    with pytest.raises(ValueError, match="org/stories row 0: `id` is int, not text"):
        texts_of(open_source("org/stories", column="id"))


def test_a_dataset_that_is_not_there_is_one_line(hub):
    with pytest.raises(
        ValueError, match="org/tales is no path, and as a dataset of the hub cannot be loaded"
    ) as caught:
        open_source("org/tales")
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="org/stories is no path.* needs the package `datasets`: pip install datasets"):
        open_source("org/stories")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="x.parquet needs the package `datasets`"):
        open_source(str(tmp_path / "x.parquet"))


def test_a_parquet_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet, table

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parquet.write_table(table({"text": ["one", "", "three", None], "id": [1, 2, 3, 4]}), tmp_path / "x.parquet")
    assert texts_of(open_source(str(tmp_path / "x.parquet"))) == ["one", "three"]


@pytest.mark.parametrize(
    "name", ["x.txt", "./x", "../x/y", "/nowhere/x", "~/nowhere/x", "data/x", "a/b/c", "org/x.jsonl"]
)
def test_a_mistyped_path_is_no_dataset_of_the_hub(name, hub, in_root):
    with pytest.raises(ValueError, match=f"^{name} does not exist$"):
        open_source(name)
    assert not hub


def test_neither_file_nor_folder():
    with pytest.raises(ValueError, match="/dev/null is neither a file nor a folder"):
        open_source("/dev/null")
