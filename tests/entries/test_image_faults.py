"""Bad input of an image run: one line with value and place, exit code 2, and nothing written."""

import csv
import json
import re

import pytest
from image_networks import NETWORKS
from PIL import Image
from recipes import convnet, images

import eval as evaluation
import train
from loader.command_line.entry import command_line

SETTINGS = "max_steps=1 report_to=none do_eval=false warmup_steps=0 save_strategy=no accelerator=cpu"
VIT = {"name": "auto", "task": "image_classification", "config": {"model_type": "vit", **NETWORKS["vit"]}}


def refused(capsys, entry, *arguments):
    """The only error line of an entry that exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line(entry, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert left.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def start(tmp_path, in_root):
    images.words(tmp_path)
    words = ["--training_config", str(tmp_path / "training.yaml"), "--set", *SETTINGS.split()]
    places = [f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'c'}"]
    return lambda *settings: train.main([*words, *places, *settings])


def edit(table, change):
    """Write a table again, after `change(rows)`."""
    rows = list(csv.reader(table.read_text().splitlines()))
    change(rows)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def with_value(row, column, value):
    def change(rows):
        rows[row][column] = value

    return change


def without_labels(rows):
    rows[1:] = [[row[0], "0", "0", "0"] for row in rows[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (with_value(4, 2, "2"), r"train/labels\.csv:5: column 'green' is '2'"),
        (with_value(4, 2, ""), r"train/labels\.csv:5: column 'green' is ''"),
        (with_value(4, 0, "0.png"), r"train/labels\.csv:5: .*0\.png.*line 2"),
        (with_value(0, 0, "what"), r"train/labels\.csv .*path_column"),
        (without_labels, "label"),
        (with_value(0, 2, "violet"), "val images.*'green'"),
    ],
)
def test_faults_of_the_training_table(start, tmp_path, capsys, change, place):
    edit(tmp_path / "train" / "labels.csv", change)
    assert re.search(place, refused(capsys, start))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_label_that_only_validation_has(start, tmp_path, capsys):
    def one_more(rows):
        rows[:] = [[*row, "violet" if index == 0 else "1"] for index, row in enumerate(rows)]

    edit(tmp_path / "val" / "labels.csv", one_more)
    assert "'violet'" in refused(capsys, start) and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (["dataset.path=/not/there.csv"], r"`dataset\.path: /not/there\.csv` in --set"),
        (["dataset.labels=[red, violet]"], r"`dataset\.labels: violet`.*labels\.csv"),
        (["dataset.label_column=kind"], r"`dataset\.label_column: kind` in --set.*labels\.csv"),
        (["dataset.image_size=4"], r"`dataset\.image_size: 4` in --set"),
    ],
)
def test_keys_that_do_not_fit_the_data_or_the_network(start, tmp_path, capsys, settings, place):
    assert re.search(place, refused(capsys, start, *settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_size_that_the_network_cannot_take(start, tmp_path, capsys):
    """Images of 16 pixels in patches of 48; and pretrained positions of 16 pixels for images of 32."""
    task = tmp_path / "task.yaml"
    task.write_text(re.sub("model: .*", f"model: {json.dumps(VIT)}", task.read_text()))
    assert "`dataset.image_size: 16`" in refused(capsys, start, "model.config.patch_size=48")
    assert not (tmp_path / "out").exists()
    start()
    fresh = ("model.config=null", f"model_name_or_path={tmp_path / 'out'}", f"output_dir={tmp_path / 'new'}")
    assert "`dataset.image_size: 32`" in refused(capsys, start, *fresh, "dataset.image_size=32")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_folder_with_one_class(start, tmp_path, capsys):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "cat" / "a.png")
    line = refused(capsys, start, f"dataset.path={tmp_path / 'one'}", "dataset.eval_path=null")
    assert f"`dataset.path: {tmp_path / 'one'}` in --set" in line and "cat" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cache", [32, 0])
def test_an_image_that_cannot_be_read(start, tmp_path, capsys, cache):
    (tmp_path / "train" / "7.png").write_bytes(b"broken")
    (tmp_path / "train" / "8.png").unlink()
    line = refused(capsys, start, f"dataset.cache_gb={cache}")
    assert "7.png" in line and "8.png" in line and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_labels_that_contradict_the_checkpoint(start, tmp_path, capsys):
    """Of a run that is scored on other data, of one that is resumed, and of one that starts from its weights."""
    start("save_strategy=steps", "save_steps=1")
    for split in ("train", "val"):
        edit(tmp_path / split / "labels.csv", with_value(0, 2, "violet"))
    assert "violet" in refused(capsys, evaluation.main, ["--checkpoint", str(tmp_path / "out")])
    assert "violet" in refused(capsys, start, "resume_from_checkpoint=auto", "max_steps=2")
    fresh = ("is_pretrained=true", f"model_name_or_path={tmp_path / 'out'}", f"output_dir={tmp_path / 'new'}")
    assert "violet" in refused(capsys, start, *fresh) and not (tmp_path / "new").exists()


# ---- keys without effect ----


@pytest.mark.slow
@pytest.mark.keys("dataset(images).augment", "dataset(images).augmentation")
@pytest.mark.parametrize(
    ("section", "key", "line"),
    [
        ("{name: images, path: TABLE, augment: false,\n  augmentation: {flip: 0.2}}", "augmentation.flip: 0.2", 2),
        ("{name: images, path: TABLE,\n  augmentation: {rand_augment_magnitude: 3}}",
         "augmentation.rand_augment_magnitude: 3", 2),
        ("{name: images, path: TABLE, label_separator: ';'}", "label_separator: ;", 1),
        ("{name: images, path: TABLE, channels: 1,\n\n  augmentation: {hue: 0.4}}", "augmentation.hue: 0.4", 3),
        ("{name: images, path: TABLE, eval_path: TABLE, eval_fraction: 0.3}", "eval_fraction: 0.3", 1),
        ("{name: images, path: TABLE, test_path: TABLE,\n  test_fraction: 0.3}", "test_fraction: 0.3", 2),
        ("{name: images, path: TABLE,\n  train_split: all}", "train_split: all", 2),
        ("{name: images, path: FOLDER,\n  root: FOLDER}", "root: FOLDER", 2),
        ("{name: images, path: FOLDER,\n  label_column: kind}", "label_column: kind", 2),
    ],
)  # fmt: skip
def test_keys_without_effect_are_refused_at_their_place(start, tmp_path, capsys, section, key, line):
    for kind in ("a", "b"):
        (tmp_path / "f" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "f" / kind / "x.png")
    names = {"TABLE": str(tmp_path / "train" / "labels.csv"), "FOLDER": str(tmp_path / "f")}
    for word, name in names.items():
        section, key = section.replace(word, name), key.replace(word, name)
    task = tmp_path / "task.yaml"
    task.write_text(f"dataset: {section}\nmodel: {{name: convnet, widths: [4]}}\n")
    assert re.search(rf"`dataset\.{re.escape(key)}` at {re.escape(str(task))}:{line}:\d+ ", refused(capsys, start))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_augmentation_of_a_recipe_is_dropped_where_a_flag_switches_it_off(tmp_path, in_root, capsys):
    words = convnet.words(tmp_path)
    task = tmp_path / "task.yaml"
    task.write_text(task.read_text().replace("augment: false", "augmentation: {erasing: 0.5}"))
    places = (f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'c'}")
    trainer = train.main([*words, "--set", *SETTINGS.split(), *places, "dataset.augment=false"])
    assert trainer.settings.train_transform is None and "dataset.augmentation.erasing" in capsys.readouterr().out
    again = ["--training_config", str(tmp_path / "out" / "run.yaml"), "--set", f"output_dir={tmp_path / 'again'}"]
    train.main(again)
