"""What predict.py reads of tables of images and of damaged checkpoints; without a network."""

import json

import pytest
from PIL import Image

from data.images.config import Config
from data.images.preprocessing import FILE, Preprocessing
from data.images.processor import Processor
from data.processor import Source

MADE = Preprocessing(8, 3, "stretch", (0.5,) * 3, (0.5,) * 3)
DATA = {"labels": ["a", "b"], "is_multi_label": True}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "out" / "eval").mkdir(parents=True)
    (tmp_path / "out" / FILE).write_text(json.dumps(MADE.as_json()))
    (tmp_path / "out" / "data.json").write_text(json.dumps(DATA))
    for name in ("v2/x.png", "v2/y.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path / "out"


def items(checkpoint, text, name="t.csv", **config):
    """(place, name, whether there is an image) of each row of a table; names of rows with an error are None."""
    table = checkpoint.parent / "v2" / name
    table.write_bytes(text)
    processor = Processor.from_pretrained(checkpoint, Config(path="x", **config), None)
    found = []
    for item in processor.read(Source(table.name, table)):
        try:
            found.append((item.place.rpartition(":")[2], processor.encode(item.raw)[0], True))
        except ValueError:
            found.append((item.place.rpartition(":")[2], item.raw[0], False))
    return found


@pytest.mark.parametrize(
    "text",
    [
        b"a|local_path\n1|x.png\n0|y.png\n",
        b"a, local_path\n1, x.png\n0, y.png\n",
        b"\xef\xbb\xbfa;local_path\r\n1;x.png\r\n0;y.png",
        b"local_path\nx.png\ny.png",
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "T.CSV"])
def test_tables_that_training_reads_are_read(checkpoint, text, name):
    assert items(checkpoint, text, name) == [("2", "x.png", True), ("3", "y.png", True)]


def test_a_row_with_an_error_is_left_out_alone(checkpoint):
    text = b"a,local_path\n1\n1,x.png\n\n0,nowhere.png\n1,y.png\n"
    expected = [("2", None, False), ("3", "x.png", True), ("5", "nowhere.png", False), ("6", "y.png", True)]
    assert items(checkpoint, text) == expected
    with pytest.raises(ValueError, match="UTF-8"):
        items(checkpoint, b"local_path\n\xff.png\n")


@pytest.mark.parametrize("key", ["root", "dataset_base_dir"])
def test_paths_are_found_below_the_folder_of_the_training_or_beside_the_table(checkpoint, key):
    """LADI's tables lie in v2/, and their paths begin with v2/."""
    text = b"local_path\nv2/x.png\ny.png\n"
    config = {key: str(checkpoint.parent)}
    assert items(checkpoint, text, **config) == [("2", "v2/x.png", True), ("3", "y.png", True)]


@pytest.mark.parametrize("content", ["[]", "{", "3", '{"a": "x"}', '{"a": [0.5]}'])
def test_damaged_thresholds_are_named(checkpoint, content):
    (checkpoint / "eval/thresholds.json").write_text('{"b": 0.125}')
    assert Processor.from_pretrained(checkpoint, Config(path="x"), None).thresholds == [0.5, 0.125]
    (checkpoint / "eval/thresholds.json").write_text(content)
    with pytest.raises(ValueError, match=r"eval/thresholds\.json"):
        Processor.from_pretrained(checkpoint, Config(path="x"), None)


@pytest.mark.parametrize("file", ["data.json", FILE])
def test_damaged_files_beside_the_model_are_named(checkpoint, file):
    (checkpoint / file).write_text("{")
    with pytest.raises(ValueError, match=f"{file} .*restore it"):
        Processor.from_pretrained(checkpoint, Config(path="x"), None)
