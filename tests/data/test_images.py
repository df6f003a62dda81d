"""Images: decoding, tables, splits, the cache, augmentation; against Pillow and counts by hand."""

import csv
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data import images
from data.images.augment import Augment
from data.images.build_bundle import rarity, sampler_of
from data.images.config import Augmentation, Config
from data.images.dataset import Collate
from data.images.decode import BadImage, Decoder
from data.images.fashion import read_idx
from data.images.preprocessing import Preprocessing, preprocessing_of
from data.images.splits import read_splits, read_table, stratified
from data.images.table import Table

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def save(path, colour=(200, 30, 30), size=(20, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def write_table(folder, rows, name="labels.csv", delimiter=",", images=True):
    """A table whose first column is local_path, and its images."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    for row in rows[1:] if images else ():
        save(folder / row[0])
    return folder / name


def run_in(folder, **process):
    values = {"model_name_or_path": None, "cache_dir": None, "trust_remote_code": False} | process
    return SimpleNamespace(seed=0, cache_dir=folder / "cache", process=SimpleNamespace(**values))


def test_tables_are_read_once_for_the_check_and_the_data(tmp_path, monkeypatch):
    table = write_table(tmp_path, [["local_path", "a", "b"], *([f"{n}.png", n % 2, 1 - n % 2] for n in range(8))])
    read = []
    monkeypatch.setattr("data.images.splits.read_table", lambda *given: read.append(given) or read_table(*given))
    run = run_in(tmp_path)
    vars(run).update(loss=None, model=None, was_set=lambda key: False, place=lambda key: "")
    for _ in range(2):  # another run, of the same table
        config = Config(path=str(table), eval_fraction=0.25, image_size=8)
        assert images.check(config, run) == []
        first, second = images.build(config, run), images.build(config, run)
        assert [*map(len, first.eval_datasets.values())] == [2] and first.summary == second.summary
    assert len(read) == 2


# ---- decoding ----


def decoded(image, size=8, channels=3, **options):
    return Decoder(size, channels, **options)(image)


def test_modes_become_rgb(tmp_path):
    """Palette, gray, 16 bits, CMYK and transparency: the colour that a viewer shows."""
    gray16 = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    transparent = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    cases = {
        "palette.png": (
            Image.new("RGB", (8, 8), (200, 30, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
            (200, 30, 30),
        ),
        "gray.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
        "bits.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "gray16.png": (gray16, (128, 128, 128)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "transparent.png": (transparent, (255, 255, 255)),
        "gray_alpha.png": (Image.new("LA", (8, 8), (50, 255)), (50, 50, 50)),
        "float.tiff": (Image.fromarray(np.full((8, 8), 100, np.float32)), (100, 100, 100)),
        "share.tiff": (Image.fromarray(np.full((8, 8), 0.5, np.float32)), (127, 127, 127)),
        "whole.tiff": (Image.fromarray(np.full((8, 8), 200, np.int32)), (200, 200, 200)),
        "frames.gif": (Image.new("RGB", (8, 8), (200, 30, 30)).quantize(2), (200, 30, 30)),
        "half.webp": (Image.new("RGBA", (8, 8), (200, 0, 0, 128)), (227, 127, 127)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name)
        pixels = decoded(tmp_path / name)
        assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
        assert np.abs(pixels[:, 4, 4].astype(int) - colour).max() <= 2, name


def test_orientation_of_exif_is_applied(tmp_path):
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter: shown, the white half is on the right
    image.save(tmp_path / "a.png", exif=exif)
    pixels = decoded(tmp_path / "a.png")[0]
    assert pixels[4, 6] == 255 and pixels[4, 1] == 0


def test_a_large_jpeg_that_exif_turns(tmp_path):
    """Decoded at a part of its size, then turned: white above becomes white on the right, for each way of resizing."""
    image = Image.new("RGB", (400, 200), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 400, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    for resize in ("stretch", "crop", "pad"):
        pixels = decoded(tmp_path / "a.jpg", channels=1, resize=resize)[0]
        assert pixels[4, 2] < 5 and pixels[4, 5] > 250, resize


@pytest.mark.keys("dataset(images).channels")
def test_four_channels_keep_what_is_transparent(tmp_path):
    Image.new("RGBA", (8, 8), (200, 30, 30, 128)).save(tmp_path / "a.png")
    save(tmp_path / "b.png", (200, 30, 30))
    assert decoded(tmp_path / "a.png", channels=4)[:, 4, 4].tolist() == [200, 30, 30, 128]
    assert decoded(tmp_path / "b.png", channels=4)[:, 4, 4].tolist() == [200, 30, 30, 255]
    batch = {"pixel_values": torch.rand(5, 4, 16, 16), "labels": torch.zeros(5, 2)}
    settings = OFF | {"saturation": 0.5, "brightness": 0.3, "contrast": 0.3}
    transform = Augment(Augmentation(**settings), (0.0,) * 4, (1.0,) * 4, None)
    changed = transform(batch, torch.Generator().manual_seed(0))["pixel_values"]
    assert torch.allclose(changed[:, 3], batch["pixel_values"][:, 3], atol=1e-6)
    assert not torch.allclose(changed[:, :3], batch["pixel_values"][:, :3], atol=1e-2)
    four = preprocessing_of(Config(channels=4), None, None)
    assert four.mean[:3] == (0.485, 0.456, 0.406) and four.mean[3] == pytest.approx(sum(four.mean[:3]) / 3)


@pytest.mark.keys("dataset(images).channels", "dataset(images).resize")
def test_resizing(tmp_path):
    """stretch is Pillow's resize; crop keeps the middle; pad adds borders."""
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (12, 20, 3), np.uint8))
    image.save(tmp_path / "a.png")
    stretched = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decoded(tmp_path / "a.png"), stretched)
    save(tmp_path / "b.png", (200, 30, 30))
    padded = decoded(tmp_path / "b.png", resize="pad")
    assert (padded[:, 0] == 114).all() and padded[0, 4, 4] == 200
    assert (decoded(tmp_path / "b.png", resize="crop")[0] == 200).all()
    assert decoded(tmp_path / "b.png", channels=1).shape == (1, 8, 8)


def test_bytes_are_read_as_files_are(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (10, 20, 30)).save(buffer, "PNG")
    assert decoded(buffer.getvalue())[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_image_is_named(tmp_path, content):
    file = tmp_path / "broken.jpg"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadImage, match=r"broken\.jpg"):
        decoded(file)


def test_a_truncated_file_is_bad(tmp_path):
    file = save(tmp_path / "a.jpg", size=(300, 300))
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(BadImage, match=r"a\.jpg"):
        decoded(file)


# ---- tables ----


@pytest.mark.keys("dataset(images).labels", "dataset(images).root")
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_of_label_columns(tmp_path, delimiter):
    """LADI's layout; text columns are left out and said."""
    rows = [
        ["url", "local_path", "flood", "rubble", "note"],
        ["http://x", "a.png", "1", "0", "n"],
        ["http://y", "b.png", "0.0", "True", "m"],
    ]
    file = write_table(tmp_path, rows, delimiter=delimiter, images=False)
    table = read_table(file, Config())
    assert table.names == ["flood", "rubble"] and table.labels == [("flood",), ("rubble",)] and table.is_multi_label
    assert table.images == [tmp_path / "a.png", tmp_path / "b.png"] and "note" in table.notes[0]
    assert read_table(file, Config(labels=["rubble"])).labels == [(), ("rubble",)]
    assert read_table(file, Config(root=str(tmp_path / "other"))).images[0] == tmp_path / "other" / "a.png"


@pytest.mark.keys("dataset(images).label_column", "dataset(images).label_separator")
def test_a_column_of_classes_and_one_of_lists(tmp_path):
    rows = [["file", "kind", "tags"], ["a.png", "cat", "x|y"], ["b.png", "dog", ""], ["c.png", "cat", '["y"]']]
    file = write_table(tmp_path, rows, images=False)
    single = read_table(file, Config(label_column="kind"))
    assert (
        single.labels == [("cat",), ("dog",), ("cat",)] and single.names == ["cat", "dog"] and not single.is_multi_label
    )
    several = read_table(file, Config(label_column="tags", label_separator="|"))
    assert several.labels == [("x", "y"), (), ("y",)] and several.is_multi_label


def test_a_folder_with_a_subfolder_per_class(tmp_path):
    for name in COLOURS:
        for index in range(3):
            save(tmp_path / name / "deep" / f"{index}.png")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    table = read_table(tmp_path, Config())
    assert table.names == ["blue", "green", "red"] and len(table.images) == 9 and "empty" in table.notes[0]


def test_parquet_with_image_bytes(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (10, 20, 30)).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    parquet.write_table(pyarrow.table({"image": [cell, cell], "label": [1, 0]}), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", Config())
    assert table.labels == [("1",), ("0",)] and decoded(table.images[0])[:, 0, 0].tolist() == [10, 20, 30]


HEADER = ["local_path", "a", "b"]


@pytest.mark.keys("dataset(images).path_column", "dataset(images).path")
@pytest.mark.parametrize(
    ("rows", "config", "place"),
    [
        ([HEADER], {}, "labels.csv"),
        ([HEADER, ["x.png", "1"]], {}, "labels.csv:2"),
        ([HEADER, ["x.png", "1", "0"], ["y.png", "0", "0"], ["z.png", "2", "0"]], {}, r"labels\.csv:4.*'a'.*'2'"),
        ([HEADER, ["x.png", "1", "0"], ["x.png", "0", "1"]], {}, r"labels\.csv:3.*x\.png.*line 2"),
        ([["local_path", "a", "a"], ["x.png", "1", "0"]], {}, r"labels\.csv:1.*'a'"),
        ([["name", "a"], ["x.png", "1"]], {}, "path_column"),
        ([HEADER, ["x.png", "1", "0"]], {"labels": ["c"]}, r"dataset\.labels: c"),
        ([HEADER, ["x.png", "1", "0"]], {"path_column": "file"}, r"dataset\.path_column: file"),
        ([HEADER, ["x.png", "0", "0"], ["y.png", "0", "0"]], {}, "label"),
        ([["local_path", "t"], ["x.png", "cat"]], {}, "label_column"),
        ([[*HEADER, "s"], ["x.png", "1", "0", "training"], ["y.png", "0", "1", "odd"]], {"split_column": "s"}, "'odd'"),
        ([["local_path", "k"], ["x.png", ""], ["y.png", "a"]], {"label_column": "k"}, r"labels\.csv:2"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, rows, config, place):
    file = write_table(tmp_path, rows, images=False)
    with pytest.raises(ValueError, match=place):
        read_splits(Config(path=str(file), **config), seed=0)


def test_other_sources_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.path.*nowhere"):
        read_table(tmp_path / "nowhere.csv", Config())
    save(tmp_path / "one" / "cat" / "a.png")
    with pytest.raises(ValueError, match="one class, cat"):
        read_splits(Config(path=str(tmp_path / "one")), seed=0)
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="no train images"):
        read_splits(Config(path=str(tmp_path / "none")), seed=0)
    for index in range(20):
        save(tmp_path / "two" / ("cat" if index % 2 else "dog") / f"{index}.png")
        save(tmp_path / "three" / ("cat" if index % 2 else "cow") / f"{index}.png")
    with pytest.raises(ValueError, match="'cow'"):
        read_splits(Config(path=str(tmp_path / "two"), eval_path=str(tmp_path / "three")), seed=0)


# ---- splits ----


def table_of(labels, groups=None):
    names = sorted({label for row in labels for label in row})
    return Table([Path(f"{row}.png") for row in range(len(labels))], labels, names, True, groups=groups)


def test_a_drawn_split_is_stratified():
    generator = np.random.default_rng(0)
    labels = [
        tuple(name for name, share in (("a", 0.5), ("b", 0.1), ("c", 0.02)) if generator.random() < share)
        for _ in range(1000)
    ]
    kept, held_out = stratified(table_of(labels), 0.2, seed=1)
    assert sorted([*kept, *held_out]) == list(range(1000)) and abs(len(held_out) - 200) < 25
    for name in "abc":
        total = sum(name in row for row in labels)
        assert abs(sum(name in labels[row] for row in held_out) - 0.2 * total) <= max(2, 0.03 * total)
    assert np.array_equal(stratified(table_of(labels), 0.2, seed=1)[1], held_out)
    assert not np.array_equal(stratified(table_of(labels), 0.2, seed=2)[1], held_out)


@pytest.mark.keys("dataset(images).group_column")
def test_the_group_column_is_read(tmp_path):
    rows = [["local_path", "a", "scene"], ["x.png", 1, "s1"], ["y.png", 0, "s2"]]
    file = write_table(tmp_path, rows, images=False)
    assert read_table(file, Config(group_column="scene")).groups == ["s1", "s2"]


def test_groups_stay_together():
    labels = [("a",) if row % 3 else ("b",) for row in range(120)]
    groups = [str(row // 4) for row in range(120)]
    kept, held_out = stratified(table_of(labels, groups), 0.25, seed=0)
    assert not {groups[row] for row in kept} & {groups[row] for row in held_out} and 20 <= len(held_out) <= 40


@pytest.mark.keys(
    "dataset(images).split_column",
    "dataset(images).eval_path",
    "dataset(images).eval_fraction",
    "dataset(images).test_fraction",
)
def test_splits_by_column_and_by_files(tmp_path):
    rows = [["local_path", "a", "b", "part"]]
    rows += [[f"{index}.png", index % 2, 1, ("train", "Validation", "test")[index % 3]] for index in range(9)]
    file = write_table(tmp_path, rows, images=False)
    tables, _ = read_splits(Config(path=str(file), split_column="part"), seed=0)
    assert {name: len(table.images) for name, table in tables.items()} == {"train": 3, "val": 3, "test": 3}
    assert tables["train"].names == ["a", "b"]
    other = write_table(tmp_path, [HEADER, ["o.png", 1, 1]], name="val.csv", images=False)
    plain = write_table(
        tmp_path, [HEADER, *([f"{index}.png", 1, index % 2] for index in range(8))], name="t.csv", images=False
    )
    tables, _ = read_splits(Config(path=str(plain), eval_path=str(other)), seed=0)
    assert {name: len(table.images) for name, table in tables.items()} == {"train": 8, "val": 1}
    tables, _ = read_splits(Config(path=str(plain), eval_fraction=0.0, test_fraction=0.25), seed=0)
    assert {name: len(table.images) for name, table in tables.items()} == {"train": 6, "test": 2}


@pytest.mark.keys(
    "dataset(images).dataset_base_dir", "dataset(images).dataset_config_name", "dataset(images).train_split"
)
def test_ladis_sets_are_found_by_name(tmp_path):
    labels = ["bridges_any", "trees_any"]
    for split, count in (("train", 4), ("train_full", 6), ("val", 2), ("test", 2)):
        rows = [["url", "local_path", *labels], *(["u", f"v2/{split}/{row}.png", row % 2, 1] for row in range(count))]
        write_table(tmp_path / "v2", rows, name=f"ladi_v2a_labels_{split}_resized.csv", images=False)
    base = Config(dataset_base_dir=str(tmp_path), dataset_config_name="v2a_resized")
    tables, notes = read_splits(base, seed=0)
    assert {name: len(table.images) for name, table in tables.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    } and not notes
    assert tables["train"].images[0] == tmp_path / "v2/train/0.png"
    everything = Config(dataset_base_dir=str(tmp_path), dataset_config_name="v2a_resized", train_split="all")
    tables, notes = read_splits(everything, seed=0)
    assert len(tables["train"].images) == 6 and "train_split" in notes[0]
    with pytest.raises(ValueError, match="v3"):
        read_splits(Config(dataset_base_dir=str(tmp_path), dataset_config_name="v3"), seed=0)


# ---- the model's preprocessing ----


@pytest.mark.keys("dataset(images).image_size", "dataset(images).mean", "dataset(images).std")
def test_the_pretrained_models_preprocessing_is_used(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 256}, "crop_size": 96, "image_mean": [0.5, 0.4, 0.3], "image_std": '
        '[0.2, 0.2, 0.1], "resample": 3}'
    )
    found = preprocessing_of(Config(), str(tmp_path), None)
    assert (found.size, found.mean, found.std, found.resample) == (96, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 3)
    given = preprocessing_of(Config(image_size=64, mean=[0, 0, 0], std=[1, 1, 1]), str(tmp_path), None)
    assert (given.size, given.mean, given.std) == (64, (0, 0, 0), (1, 1, 1))
    assert preprocessing_of(Config(channels=1), None, None).mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert Preprocessing.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    ("theirs", "mean", "resample", "flips"),
    [
        ({"size": 8, "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 0.0, 2, False),
        ({"size": 8, "do_flip_channel_order": True}, 0.0, 2, True),  # MobileViT names no mean at all
        ({"size": 8, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 0},
         0.5, 0, False),
    ],
)  # fmt: skip
def test_models_that_want_other_inputs(tmp_path, theirs, mean, resample, flips):
    """Not normalised, blue first, or resized to the nearest pixel, as their file says."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(theirs))
    made = preprocessing_of(Config(), str(tmp_path), None)
    assert made.mean == (mean,) * 3 and (made.resample, made.flips_channels) == (resample, flips)
    assert Preprocessing.from_json(json.loads(json.dumps(made.as_json()))) == made
    pixels = Collate(made.mean, made.std, made.flips_channels).normalised(torch.tensor([[[[255]], [[0]], [[51]]]]))
    if mean == 0:
        assert pixels.flatten().tolist() == pytest.approx([0.2, 0, 1] if flips else [1, 0, 0.2])


@pytest.mark.keys("dataset(images).std", "dataset(images).labels")
@pytest.mark.parametrize("values", [{"mean": [0.5] * 3, "std": [1, 0, 1]}, {"labels": ["a", "b", "a"]}])
def test_values_that_cannot_be_meant(values):
    with pytest.raises(ValueError, match=f"`{list(values)[-1]}: "):
        Config(path="x", **values)


def test_transformers_reads_the_saved_preprocessing(tmp_path):
    """Its processor makes of an image what the data set's collate makes of it."""
    from transformers import ViTImageProcessor

    made = Preprocessing(8, 3, "stretch", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(made.as_json()))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8))
    image.save(tmp_path / "a.png")
    theirs = ViTImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    pixels = decoded(tmp_path / "a.png", resample=made.resample)
    ours = Collate(made.mean, made.std)((pixels[None], np.zeros((1, 2), np.float32)))["pixel_values"]
    assert torch.allclose(ours, theirs, atol=0.03)  # half a gray level where the two round apart


# ---- augmentation ----


def batch_of(count=6, size=16, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, size, size, generator=generator)
    return {"pixel_values": images, "labels": torch.eye(count)[:, :4].contiguous()}


OFF = {"crop_scale": [1.0, 1.0], "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def augmented(batch, seed=0, classes=None, **config):
    transform = Augment(Augmentation(**OFF | config), (0.0,) * 3, (1.0,) * 3, classes)
    return transform(batch, torch.Generator().manual_seed(seed))


def test_nothing_is_changed_where_all_is_off():
    batch = batch_of()
    assert torch.allclose(augmented(batch)["pixel_values"], batch["pixel_values"], atol=1e-6)


def test_augmentation_follows_from_the_generator():
    settings = {"crop_scale": [0.5, 1.0], "flip": 0.5, "hue": 0.1, "contrast": 0.3, "erasing": 0.5, "mixup": 0.4}
    first, again, other = (augmented(batch_of(), seed, **settings) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_flips_are_flips():
    batch = batch_of()
    turned = augmented(batch, flip=1.0)["pixel_values"]
    assert torch.allclose(turned, batch["pixel_values"].flip(-1), atol=1e-6)
    assert torch.allclose(
        augmented(batch, vertical_flip=1.0)["pixel_values"], batch["pixel_values"].flip(-2), atol=1e-6
    )


def test_a_crop_is_a_resized_part():
    """Of a ramp along x, a crop is a flatter ramp within the old one's range."""
    ramp = torch.linspace(0, 1, 32).expand(4, 3, 32, 32)
    cropped = augmented(
        {"pixel_values": ramp.contiguous(), "labels": torch.zeros(4, 2)}, crop_scale=[0.25, 0.25], crop_ratio=[1, 1]
    )
    rows = cropped["pixel_values"][:, 0, 16]
    assert torch.allclose(rows[:, -1] - rows[:, 0], torch.full((4,), 0.5), atol=0.03)
    assert rows.min() >= 0 and rows.max() <= 1 and len({round(float(row[0]), 4) for row in rows}) == 4


def test_colours_change_as_they_are_meant_to():
    batch = batch_of()
    images = batch["pixel_values"] * 0.5 + 0.2
    luma = functools.partial(torch.einsum, "c,bchw->bhw", torch.tensor([0.299, 0.587, 0.114]))
    turned = augmented({**batch, "pixel_values": images}, hue=0.05)["pixel_values"]
    assert torch.allclose(luma(turned), luma(images), atol=2e-3) and not torch.allclose(turned, images, atol=1e-2)
    gray = luma(images)[:, None].expand_as(images)
    assert torch.allclose(
        augmented({**batch, "pixel_values": gray.contiguous()}, hue=0.3, saturation=0.9)["pixel_values"],
        gray,
        atol=2e-3,
    )
    brighter = augmented({**batch, "pixel_values": images}, brightness=0.1)["pixel_values"] / images
    assert torch.allclose(brighter, brighter[:, :1, :1, :1].expand_as(brighter), atol=1e-4)
    assert brighter.min() >= 0.9 and brighter.max() <= 1.1


def test_erasing_fills_a_box_with_the_mean():
    erased = augmented(batch_of(count=4), erasing=1.0)["pixel_values"]
    zeros = (erased == 0).all(1)  # (B, S, S)
    for mask in zeros:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.any() and torch.equal(mask, rows[:, None] & columns[None])


def test_mixup_and_cutmix_mix_images_and_labels_alike():
    """Constant images: the share of another image is read off the pixels and must be the labels' share."""
    values = torch.arange(1, 7) / 8
    batch = {"pixel_values": values[:, None, None, None].expand(6, 3, 16, 16).contiguous(), "labels": torch.arange(6)}
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed = augmented(batch, seed=3, classes=6, **settings)
        assert torch.allclose(mixed["labels"].sum(1), torch.ones(6))
        assert torch.allclose(mixed["labels"] @ values, mixed["pixel_values"].mean((1, 2, 3)), atol=1e-5)
        assert ((mixed["labels"] > 0).sum(1) <= 2).all() and (mixed["labels"] < 1).any()


@pytest.mark.slow
def test_rand_augment_leaves_the_global_random_numbers_alone():
    pytest.importorskip("kornia")
    state = torch.get_rng_state()
    first, again = (augmented(batch_of(size=32), 5, rand_augment=2)["pixel_values"] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(first, batch_of(size=32)["pixel_values"], atol=1e-2)


# ---- weights, idx ----


def test_sampling_weights_follow_the_rarest_label():
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.float32)
    assert rarity(targets) == pytest.approx([1 / 3, 1, 1 / 3, 1 / 4])
    assert rarity(np.array([0, 0, 1])) == pytest.approx([0.5, 0.5, 1])
    assert sorted(sampler_of(Config(), targets)(0)) == [0, 1, 2, 3]  # uniform: every image once
    assert set(sampler_of(Config(sampling="weighted"), np.array([[1], [0]], np.float32))(0)) <= {0, 1}


def test_a_file_that_is_no_idx_is_named(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz", 1)


def test_an_empty_separator_is_named():
    with pytest.raises(ValueError, match="`label_separator`"):
        Config(label_column="kind", label_separator="")
