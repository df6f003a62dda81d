"""Tracking through train.py: the document's example and flags, and what is refused."""

import json

import numpy as np
import pytest
import yaml
from documents import SHARED, blocks, checked, filled
from run_results import error_lines, metrics
from track_files import images, positions, write_film, write_slp, write_stack

import train
from loader.checks.static_checks import check_run
from loader.command_line.entry import run_config
from loader.command_line.parser import help_text, parse_flags
from loader.resolve.resolver import resolve

pytest.importorskip("tifffile")
SIZE = (48, 64)


@pytest.fixture
def videos(tmp_path):
    """A folder with two videos, NAME.csv and NAME.tif each."""
    for number in range(2):
        write_stack(tmp_path / "videos", f"v{number}", size=SIZE, seed=number)
    return tmp_path / "videos"


def resolved(*words):
    given = parse_flags([str(word) for word in words])
    return resolve(given.hyper, given.command.set, aliases=given.aliases)


@pytest.mark.slow
def test_the_flags_of_tracking(videos, in_root):
    """Each sets its key; the folder as a bare word or as --train-dir; they choose the task when none is named."""
    words = """--val-dir VAL --crop-size 24 --epochs 20 --lr 0.0002 --d-model 32 --nhead 2 --encoder-layers 3
        --decoder-layers 4 --anchor head --clip-length 7"""
    run = resolved(videos, *words.split())
    assert (run.task, run.dataset.name, run.model.name, run.loss.name) == (
        "tracking",
        "tracks",
        "tracker",
        "association",
    )
    data, model = run.dataset.config, run.model.config
    assert data.train_dataset.dir.path == [str(videos)] and data.val_dataset.dir.path == "VAL"
    split = data.split("val")
    assert (split.crop_size, split.anchors, split.clip_length) == (24, "head", 7)
    assert (run.hyper.num_train_epochs, run.hyper.learning_rate) == (20, 2e-4)
    assert (model.d_model, model.nhead, model.num_encoder_layers, model.num_decoder_layers) == (32, 2, 3, 4)
    assert resolved("--task_name", "tracking", "--train-dir", videos).dataset.config.train_dataset.dir.path == [
        str(videos)
    ]


def test_help_shows_them_under_their_own_heading():
    (section,) = [part for part in help_text().split("\n\n") if part.startswith("tracking: ")]
    for flag in ("train_dir", "val_dir", "crop_size", "d_model", "nhead", "encoder_layers", "decoder_layers", "anchor"):
        assert f"--{flag} " in section
    assert "--clip_length " in section and "--epochs" in section and "--lr" in section


@pytest.mark.parametrize("word", ["nowhere", "--crop-sice"])
def test_a_word_that_is_neither_flag_nor_folder(word, capsys):
    (line,) = error_lines(capsys, run_config, [word, *(["3"] if word.startswith("-") else [])])
    assert f"`{word}`" in line


def test_a_folder_is_nothing_to_another_task(videos, capsys, in_root):
    lines = error_lines(capsys, run_config, ["--task_name", "text", str(videos), "--check"])
    assert any("dataset.train_dataset" in line for line in lines)


def test_loaders_of_three_sections(videos, tmp_path, in_root):
    """The same value for validation and test is no contradiction."""
    path = tmp_path / "a.yaml"
    loaders = {"train_dataloader": {"shuffle": False, "num_workers": 1}}
    loaders |= dict.fromkeys(("val_dataloader", "test_dataloader"), {"shuffle": False, "num_workers": 2})
    path.write_text(
        yaml.safe_dump({"dataloader": loaders, "dataset": {"train_dataset": {"dir": {"path": str(videos)}}}})
    )
    run = resolved("--training_config", path)
    assert run.process.shuffle is False and run.process.eval_num_workers == 2 and run.process.eval_shuffle is False
    assert run.hyper.dataloader_num_workers == 1 and run.task == "tracking"


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_what_a_file_in_the_documents_words_leaves_out_has_its_defaults(videos, tmp_path, in_root, named):
    """With `task_name: tracking` the file is a recipe of its own, on Keel's defaults."""
    path = tmp_path / "a.yaml"
    words = {"dataset": {"train_dataset": {"dir": {"path": str(videos)}}}}
    words |= {"scheduler": {"name": "ReduceLROnPlateau", "factor": 0.3}, **({"task_name": "tracking"} if named else {})}
    path.write_text(yaml.safe_dump(words))
    run = resolved("--training_config", path)
    found = run.hyper.num_train_epochs, run.hyper.learning_rate, run.hyper.weight_decay, run.process.min_epochs
    assert found == ((3, 5e-5, 0, 0) if named else (20, 1e-4, 0.01, 1))
    patience = {} if named else {"mode": "min", "patience": 5, "threshold": 0.001}
    assert run.scheduler == {"factor": 0.3, **patience} and check_run(run) == []
    words |= {"trainer": {"max_epochs": 7}, "optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": {"name": "StepLR"}}
    path.write_text(yaml.safe_dump(words | {"scheduler": {"name": "StepLR", "step_size": 2}}))
    run = resolved("--training_config", path)
    assert (run.hyper.num_train_epochs, run.hyper.learning_rate, run.scheduler) == (7, 0.1, {"step_size": 2})
    assert run.trainer.get("max_grad_norm", 1.0) == (1.0 if named else 0.0)


# ---- runs ----


QUICK = ["report_to=none", "save_strategy=no", "logging_steps=1", "eval_steps=100", "per_device_train_batch_size=2"]
SMALL = ["model.d_model=16", "model.encoder_cfg.model_name=conv", "dataset.val_frames=4", "dataset.channels=1"]


@pytest.mark.slow
def test_a_run_from_a_bare_folder(videos, tmp_path, in_root):
    words = f"{videos} --crop-size 16 --clip-length 4 --max_steps 3 --output_dir {tmp_path}/o".split()
    trainer = train.main(
        [*words, "--set", *QUICK, *SMALL, f"cache_dir={tmp_path}/c", "eval_strategy=steps", "eval_steps=3"]
    )
    assert trainer.state.global_step == 3
    assert np.isfinite(list(metrics(tmp_path / "o", "loss").values())).all()
    assert 0 <= metrics(tmp_path / "o", "eval_idf1")[3] <= 1
    saved = json.loads((tmp_path / "o" / "tracks.json").read_text())
    assert (saved["crop_size"], saved["side"], saved["anchors"]) == (16, 16, ["centroid"])


@pytest.mark.slow
def test_the_documents_example_runs_and_resumes(videos, tmp_path, in_root):
    """With its placeholders filled, as printed; a network of its own size, without the network's weights and W&B."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    (document,) = (SHARED / "specs").glob("003*")
    example = filled(next(text for _, text in blocks(document) if "early_stopping:" in text))
    example["dataset"]["train_dataset"]["dir"]["path"] = str(videos)
    example["dataset"]["val_dataset"] = {"dir": example["dataset"]["train_dataset"]["dir"], "crop_size": 8}
    example["dataset"]["train_dataset"]["augmentations"] = {"Rotate": {"limit": 45, "p": 0.3}}
    example["logging"] = {"logger_type": None}
    example["optimizer"] |= {"lr": 1e-3, "eps": 1e-8}
    example["checkpointing"] |= {"every_n_epochs": 1}
    example["trainer"] |= {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "log_every_n_steps": 1}
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump(example))
    words = ["--training_config", str(path), "--set", f"cache_dir={tmp_path}/c"]
    trainer = train.main([*words, f"output_dir={tmp_path}/a"])
    config = trainer.model.config
    assert (config.d_model, config.nhead, config.num_encoder_layers, config.channels) == (16, 2, 2, 3)
    assert trainer.settings.loss.neg_unmatched is True and len(trainer.train_dataset) == 2  # n_chunks
    assert trainer.state.epoch == 2
    checkpoint = max((tmp_path / "a").glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    example["model"]["ckpt_path"] = str(checkpoint)
    example["trainer"] |= {"max_epochs": 3}
    path.write_text(yaml.safe_dump(example))
    resumed = train.main([*words, f"output_dir={tmp_path}/b"])
    assert resumed.state.epoch == 3 and resumed.state.global_step == trainer.state.global_step * 3 // 2


# ---- what is refused: one line, exit code 2, nothing written ----


def write_flies(folder, frames=6, known=None, film=6):
    folder.mkdir()
    places = positions(frames, 2, SIZE, 0)
    write_slp(folder / "a.slp", places, known=known)
    if film:
        write_film(folder / "a.mp4", images(places[:film], SIZE))
    return folder


def without_a_video(folder):
    return [write_flies(folder, film=0)], "a.slp"


def without_labels(folder):
    write_flies(folder)
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    return [folder], "b.mp4"


def with_a_short_video(folder):
    return [write_flies(folder, film=4)], "a.mp4"


def with_an_anchor_that_the_skeleton_lacks(folder):
    return [write_flies(folder), "--anchor", "wing"], "wing"


def without_identities(folder):
    return [write_flies(folder, known=lambda frame, track: False)], "a.slp"


def with_crops_larger_than_the_image(folder):
    return [write_flies(folder), "--crop-size", 50], "50"


def with_a_video_that_is_none(folder):
    write_flies(folder, film=0)
    (folder / "a.mp4").write_bytes(b"no film" * 100)
    return [folder], "a.mp4"


def with_a_label_file_that_is_none(folder):
    write_flies(folder)
    (folder / "a.slp").write_bytes(b"no labels" * 100)
    return [folder], "a.slp"


def with_a_table_that_repeats_an_id(folder):
    import tifffile

    (folder / "01_GT" / "TRA").mkdir(parents=True)
    (folder / "01").mkdir()
    for number in range(4):
        tifffile.imwrite(folder / "01" / f"t{number:03}.tif", np.full(SIZE, 9, np.uint8))
        mask = np.zeros(SIZE, np.uint16)
        mask[4:9, 4:9] = 3
        tifffile.imwrite(folder / "01_GT" / "TRA" / f"man_track{number:03}.tif", mask)
    (folder / "01_GT" / "TRA" / "man_track.txt").write_text("3 0 2 0\n3 2 3 0\n")
    return [folder], "man_track.txt:2"


def with_an_augmentation_that_does_not_exist(folder):
    return [write_flies(folder), "--set", "dataset.train_dataset.augmentations={Rotat: {limit: 4}}"], "Rotate"


def with_a_wrong_argument(folder):
    return [write_flies(folder), "--set", "dataset.train_dataset.augmentations={Rotate: {limt: 4}}"], "limit"


def with_a_wrong_value(folder):
    return [
        write_flies(folder),
        "--set",
        "dataset.train_dataset.augmentations={MotionBlur: {blur_limit: x}}",
    ], "MotionBlur"


def with_a_wrong_argument_of_dropout(folder):
    return [write_flies(folder), "--set", "dataset.train_dataset.augmentations={NodeDropout: {q: 1}}"], "`q`"


def with_a_blur_of_coordinates(folder):
    blur = "dataset.train_dataset.augmentations={MotionBlur: {p: 1}}"
    return [write_flies(folder), "--set", "dataset.images=false", blur], "augmentations.MotionBlur"


def with_an_unknown_key(folder):
    return [write_flies(folder), "--set", "dataset.train_dataset.clip_lenght=4"], "clip_length"


def with_two_kinds_of_labels(folder):
    write_stack(write_flies(folder), "b")
    return [folder], "labels_suffix"


def with_a_list_of_crop_sizes_that_is_too_long(folder):
    return [write_flies(folder), "--set", "dataset.train_dataset.crop_size=[4,5]"], "crop_size"


def with_directions_of_one_anchor(folder):
    return [write_flies(folder), "--set", "dataset.tracker.max_angle_diff=20"], "anchors"


REFUSED = [value for name, value in list(globals().items()) if name.startswith(("with_", "without_"))]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_bad_input_is_one_line(case, tmp_path, capsys, in_root):
    for name in ("sleap_io", "av", "albumentations"):
        pytest.importorskip(name)
    words, named = case(tmp_path / "videos")
    options = ["--output_dir", tmp_path / "out", "--crop-size", 8, "--clip-length", 4, "--max_steps", 1]
    settings = ["--set", *QUICK, f"cache_dir={tmp_path / 'c'}", "dataset.val_frames=2", "report_to=none"]
    (line,) = error_lines(capsys, train.main, [str(word) for word in (*options, *words, *settings)])
    assert named in line
    assert not (tmp_path / "out").exists()


@pytest.mark.keys("dataset(tracks).val_frames", "dataset(tracks).images", "dataset(tracks).image_size")
@pytest.mark.parametrize(
    ("beside", "key"),
    [
        ("val_dataset.dir.path", "dataset.val_frames=3"),
        ("images=false", "dataset.channels=1"),
        ("images=false", "dataset.cache_gb=2"),
        ("images=true", "dataset.image_size=[48,64]"),
        ("images=true", "dataset.train_dataset.video_files=[v.mp4]"),
        ("images=true", "dataset.test_dataset.dir.labels_suffix=.csv"),
        ("images=true", "model.motion=true"),
        ("images=true", "model.encoder_cfg.weights=DIR"),
        ("images=true", "model.embedding_meta.pos={normalize: false, scale: 3.0}"),
    ],
)
def test_keys_without_effect(videos, tmp_path, in_root, beside, key):
    """Given together they are refused; on the command line the one that decides has precedence over a file."""
    beside += f"={videos}" if beside.endswith("path") else ""
    code, lines = checked(str(videos), "--set", f"dataset.{beside}", key, f"output_dir={tmp_path}/o")
    name = "model.embedding_meta.pos.scale" if "scale" in key else key.partition("=")[0]
    assert code == 2 and len(lines) == 1 and f"`{name}: " in lines[0]


@pytest.mark.slow
def test_a_validation_set_on_the_command_line_replaces_the_recipes_held_out_frames(videos, in_root):
    words = ["--training_config", "tracking_cpu", videos]
    assert check_run(resolved(*words)) == [] and resolved(*words).dataset.config.val_frames == 40
    run = resolved(*words, "--val-dir", videos)
    assert check_run(run) == [] and run.dataset.config.val_frames == 0.2
    (note,) = [note for note in run.notes if "`dataset.val_frames: 40`" in note]
    assert "tracking_cpu.yaml:9" in note and "dataset.val_dataset.dir.path" in note


def test_motion_of_a_recipe_is_dropped_with_the_geometry_that_it_needs(videos, in_root):
    run = resolved("--training_config", "tracking_points_cpu", videos, "--set", "model.relative_geometry=false")
    assert check_run(run) == [] and run.model.config.motion is False


def test_what_needs_no_data_is_checked_without_it(videos, tmp_path, in_root):
    code, lines = checked(str(videos), "--set", "dataset.train_dataset.dir.vid_suffix=.avi", f"output_dir={tmp_path}/o")
    assert code == 2 and len(lines) == 1 and ".avi" in lines[0]
