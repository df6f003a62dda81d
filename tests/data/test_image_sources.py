"""Where images and labels come from: folders as `imagefolder` reads them, tables as spreadsheets write them."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images.build_bundle import image_identity, target_array
from data.images.config import Config
from data.images.decode import Decoder
from data.images.splits import read_splits, read_table, stratified
from data.images.table import Table

KINDS = ("cat", "dog", "newt")


def save(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)
    return path


def splits_of(path, **config):
    tables, _ = read_splits(Config(path=str(path), **config), seed=0)
    return tables


def by_name(table):
    return {image.name: labels for image, labels in zip(table.images, table.labels, strict=True)}


# ---- folders ----


def test_splits_in_subfolders(tmp_path):
    """Validation lacks a class: the numbers of the labels are those of training."""
    for split, kinds in (("train", KINDS), ("validation", KINDS[1:]), ("test", KINDS)):
        for kind in kinds:
            save(tmp_path / split / kind / f"{split}_{kind}.png")
    tables = splits_of(tmp_path)
    assert {name: len(table.images) for name, table in tables.items()} == {"train": 3, "val": 2, "test": 3}
    assert by_name(tables["val"]) == {"validation_dog.png": ("dog",), "validation_newt.png": ("newt",)}
    assert target_array(tables["val"]).tolist() == [1, 2] and target_array(tables["train"]).tolist() == [0, 1, 2]


def test_hidden_files_are_left_out_and_links_followed(tmp_path):
    for kind in KINDS[:2]:
        save(tmp_path / "data" / kind / f"{kind}.png")
        save(tmp_path / "data" / kind / f"._{kind}.png")  # as macOS leaves them beside copies
        save(tmp_path / "data" / kind / ".thumbnails" / "small.png")
    save(tmp_path / "elsewhere" / "linked.png")
    (tmp_path / "data" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    labels = {"cat.png": ("cat",), "dog.png": ("dog",), "linked.png": ("dog",)}
    assert by_name(read_table(tmp_path / "data", Config())) == labels


def test_folders_named_as_splits_may_be_classes(tmp_path):
    for kind in ("train", "plane"):
        for number in range(4):
            save(tmp_path / kind / f"{number}.png")
    assert read_table(tmp_path, Config()).names == ["plane", "train"]


def test_a_class_that_only_validation_has_is_named(tmp_path):
    for split, kinds in (("train", KINDS[:2]), ("val", KINDS)):
        for kind in kinds:
            save(tmp_path / split / kind / "a.png")
    with pytest.raises(ValueError, match="val images.*'newt'"):
        splits_of(tmp_path)


def as_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_metadata_in_lines_of_json(tmp_path):
    """A class in `label`, or several in a list; in one folder, or in one of each split."""
    as_json(tmp_path / "one/metadata.jsonl", [{"file_name": f"{kind}.png", "label": kind} for kind in KINDS])
    one = read_table(tmp_path / "one", Config())
    assert one.labels == [("cat",), ("dog",), ("newt",)] and not one.is_multi_label
    assert one.images[0] == tmp_path / "one/cat.png"
    rows = [{"file_name": "a.png", "labels": ["dog", "it's"]}, {"file_name": "b.png", "labels": []}]
    as_json(tmp_path / "many/train/metadata.jsonl", rows)
    as_json(tmp_path / "many/validation/metadata.jsonl", [{"file_name": "c.png", "labels": ["it's"]}])
    tables = splits_of(tmp_path / "many")
    assert tables["train"].labels == [("dog", "it's"), ()] and tables["train"].is_multi_label
    assert target_array(tables["val"]).tolist() == [[0, 1]]
    as_json(
        tmp_path / "columns.jsonl", [{"file_name": "a.png", "x": 1, "y": True}, {"file_name": "b.png", "x": 0, "y": 0}]
    )
    assert read_table(tmp_path / "columns.jsonl", Config()).labels == [("x", "y"), ()]
    (tmp_path / "bad.jsonl").write_text('{"file_name": "a.png"}\n[1]\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        read_table(tmp_path / "bad.jsonl", Config())


def test_metadata_in_a_csv(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\na/1.png,1\na/2.png,0\n")
    table = read_table(tmp_path, Config())
    assert table.names == ["0", "1"] and not table.is_multi_label and table.images[1] == tmp_path / "a/2.png"
    (tmp_path / "metadata.csv").write_text("file_name,label,tags\na/1.png,1,x|y\na/2.png,0,\n")
    assert read_table(tmp_path, Config(label_column="tags", label_separator="|")).labels == [("x", "y"), ()]


# ---- tables as programs write them ----


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbflocal_path;a;b\r\nx y.png;1;0\r\n\"q;1.png\";0;1\r\n",  # Excel in Europe
        b"local_path, a, b\nx y.png, 1, 0\n\"q;1.png\", 0, 1\n",  # a space behind each comma
        b'"local_path","a","b"\n"x y.png","1","0"\n"q;1.png","0","1"\n\n',
        b"local_path|a|b\nx y.png|1|0\nq;1.png|0|1\n",
        b"local_path\ta\tb\nx y.png\t1.0\t0.0\nq;1.png\tFalse\tTrue",
        b"local_path,a,b,,\nx y.png,1,0,,\nq;1.png,0,1,,\n,,,,\n",  # empty columns and rows of a spreadsheet
        b",local_path,a,b\n0,x y.png,1,0\n1,q;1.png,0,1\n",  # numbered by pandas
    ],
)  # fmt: skip
def test_dialects_of_tables(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    table = read_table(tmp_path / "labels.csv", Config())
    assert table.images == [tmp_path / "x y.png", tmp_path / "q;1.png"]
    assert (table.names, table.labels) == (["a", "b"], [("a",), ("b",)])


def test_absolute_paths_and_paths_that_are_one_file(tmp_path):
    (tmp_path / "labels.csv").write_text(f"path,a\n{tmp_path / 'elsewhere' / 'x.png'},1\ny.png,0\n")
    assert read_table(tmp_path / "labels.csv", Config(root="/root")).images[0] == tmp_path / "elsewhere/x.png"
    (tmp_path / "labels.csv").write_text("path,a\n./x.png,1\nsub//y.png,0\nx.png,0\n")
    with pytest.raises(ValueError, match=r"labels\.csv:4.*line 2"):
        read_table(tmp_path / "labels.csv", Config())


@pytest.mark.keys("dataset(images).label_separator", "dataset(images).label_column")
@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (("cat;dog", "", " dog "), ";"),
        (("cat|dog", "", "dog|dog"), "|"),
        (('"[""cat"", ""dog""]"', "[]", '"[""dog""]"'), None),  # JSON
        (("\"['cat', 'dog']\"", "[]", "['dog']"), None),  # as pandas writes a list
    ],
)
def test_lists_of_labels(tmp_path, cells, separator):
    lines = "".join(f"{index}.png,{cell}\n" for index, cell in enumerate(cells))
    (tmp_path / "labels.csv").write_text("path,tags\n" + lines)
    table = read_table(tmp_path / "labels.csv", Config(label_column="tags", label_separator=separator))
    assert table.labels == [("cat", "dog"), (), ("dog",)] and table.names == ["cat", "dog"] and table.is_multi_label


def test_columns_of_validation_in_another_order(tmp_path):
    """The numbers of labels are those of training; a column that is missing is named, not read as 0."""
    (tmp_path / "train.csv").write_text("path,a,b\n1.png,1,0\n2.png,0,1\n")
    (tmp_path / "val.csv").write_text("path,b,a\n3.png,1,0\n")
    tables = splits_of(tmp_path / "train.csv", eval_path=str(tmp_path / "val.csv"))
    assert target_array(tables["val"]).tolist() == [[0, 1]]
    (tmp_path / "val.csv").write_text("path,b\n3.png,1\n")
    with pytest.raises(ValueError, match="val images.*'a'"):
        splits_of(tmp_path / "train.csv", eval_path=str(tmp_path / "val.csv"))


def test_a_class_of_one_split_of_a_column_is_named(tmp_path):
    (tmp_path / "all.csv").write_text("path,kind,part\n1.png,cat,train\n2.png,dog,train\n3.png,newt,val\n")
    with pytest.raises(ValueError, match="val images.*'newt'"):
        splits_of(tmp_path / "all.csv", label_column="kind", split_column="part")


def test_numbers_of_labels_are_stable_over_drawn_splits(tmp_path):
    rows = "".join(f"{index}.png,{index % 2},{(index + 1) % 2}\n" for index in range(20))
    (tmp_path / "all.csv").write_text("path,a,b\n" + rows)
    tables = splits_of(tmp_path / "all.csv", eval_fraction=0.2, test_fraction=0.2)
    for table in tables.values():
        assert table.names == ["a", "b"]
        numbers = np.array([int(image.stem) % 2 for image in table.images])
        assert np.array_equal(target_array(table)[:, 0], numbers)


@pytest.mark.parametrize(("numbers", "classes"), [("cat dog cat", True), ("0 1 2", True), ("1 0 1", False)])
def test_a_column_called_label(tmp_path, numbers, classes):
    """Without keys it holds the classes, as in metadata and Parquet files; of 0 and 1 alone it is a label itself."""
    lines = "".join(f"{index}.png,{value}\n" for index, value in enumerate(numbers.split()))
    (tmp_path / "labels.csv").write_text("path,label\n" + lines)
    table = read_table(tmp_path / "labels.csv", Config())
    assert table.names == (sorted(set(numbers.split())) if classes else ["label"])
    assert table.is_multi_label is not classes


def test_lines_of_json_end_where_json_says(tmp_path):
    """U+2028 ends a line for Python, but not in JSON; text that is not UTF-8 is named with its line."""
    rows = [{"file_name": f"{name}.png", "label": name} for name in ("a\u2028b", "c\x85d")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    assert read_table(tmp_path / "a.jsonl", Config()).labels == [("a\u2028b",), ("c\x85d",)]
    (tmp_path / "b.jsonl").write_bytes(text.encode() + b'{"file_name": "\xff.png"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl:3"):
        read_table(tmp_path / "b.jsonl", Config())


def test_images_of_every_kind_are_found(tmp_path):
    for suffix in ("ppm", "pgm", "PNG", "jfif"):
        mode, name = "L" if suffix == "pgm" else "RGB", tmp_path / "d" / suffix.lower()[0] / f"x.{suffix}"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (8, 8)).save(name, "JPEG" if suffix == "jfif" else None)
    table = read_table(tmp_path / "d", Config())
    assert sorted(image.suffix for image in table.images) == [".PNG", ".jfif", ".pgm", ".ppm"]
    assert all(Decoder(8)(image).shape == (3, 8, 8) for image in table.images)


# ---- drawn splits ----


def test_a_drawn_split_stays_when_the_folder_moves(tmp_path, monkeypatch):
    """Images held out by a training are not trained on, nor the reverse, when the data is found at another path."""
    for kind in KINDS:
        for number in range(20):
            save(tmp_path / "here" / kind / f"{number}.png")
    (tmp_path / "there").mkdir()
    os.rename(tmp_path / "here", tmp_path / "there/again")
    monkeypatch.chdir(tmp_path / "there")
    absolute, relative = splits_of(tmp_path / "there/again"), splits_of("again")
    (tmp_path / "there/again").rename(tmp_path / "here")
    for moved in (absolute, relative):
        held_out = [image.relative_to(image.parents[1]) for image in moved["val"].images]
        at_first = [image.relative_to(tmp_path / "here") for image in splits_of(tmp_path / "here")["val"].images]
        assert held_out == at_first and len(held_out) == 6


@pytest.mark.slow
def test_a_split_of_many_classes_takes_little_time():
    """Proportional to the number of images, not to images times classes."""
    labels = np.random.default_rng(0).integers(0, 1000, 20_000)
    paths = [Path(f"{row}.png") for row in range(len(labels))]
    rows = [(f"c{label}",) for label in labels]
    began = time.process_time()
    kept, held_out = stratified(Table(paths, rows, [f"c{label}" for label in range(1000)], False), 0.1, 0)
    assert time.process_time() - began < 3 and len(kept) + len(held_out) == 20_000
    assert 1500 < len(held_out) < 2500


# ---- Parquet ----


def parquet_table(path, colours, labels, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    cells = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pyarrow.table({"image": cells, "label": labels, **columns})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return read_table(path, Config())


def test_images_of_a_table_that_is_written_again_are_decoded_again(tmp_path):
    first = parquet_table(tmp_path / "a.parquet", [(10, 0, 0)] * 2, [0, 1])
    again = read_table(tmp_path / "a.parquet", Config())
    assert [image_identity(image) for image in first.images] == [image_identity(image) for image in again.images]
    second = parquet_table(tmp_path / "a.parquet", [(200, 0, 0)] * 2, [0, 1])
    assert image_identity(first.images[0]) != image_identity(second.images[0])
    assert image_identity(second.images[0]) != image_identity(second.images[1])


def test_images_without_a_label_are_left_out(tmp_path):
    """Not of the last class, as -1 would be in Python."""
    table = parquet_table(tmp_path / "a.parquet", [(10 * row, 0, 0) for row in range(4)], [1, -1, None, 0])
    assert table.labels == [("dog",), ("cat",)] and table.names == ["cat", "dog"] and "2 images" in table.notes[0]
    assert [int(Decoder(8)(image)[0, 0, 0]) for image in table.images] == [0, 30]
    with pytest.raises(ValueError, match="row 1.*'label'.* 7"):
        parquet_table(tmp_path / "b.parquet", [(0, 0, 0)] * 2, [1, 7])


def test_images_in_files_beside_the_table(tmp_path):
    """As the library `datasets` keeps images of a folder: a path, and no bytes."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    save(tmp_path / "x.png", 77)
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("x.png", "y.png")]
    parquet.write_table(pyarrow.table({"image": cells, "label": ["cat", "dog"]}), tmp_path / "a.parquet")
    there, missing = read_table(tmp_path / "a.parquet", Config()).images
    assert Decoder(8)(there)[:, 0, 0].tolist() == [77, 0, 0]
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 does not exist"):
        Decoder(8)(missing)
