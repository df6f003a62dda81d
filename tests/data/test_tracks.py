"""Clips, windows and crops of tracks, and every key of the data, against pixels and places by hand."""

import dataclasses
import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from track_files import SHADES, positions, write_slp, write_stack

from data.tracks import build
from data.tracks.clips import Clips, Windows
from data.tracks.config import Config, Directory, Split, TrackerSettings
from data.tracks.crops import Cutter
from data.tracks.recording import Frame, Recording
from data.tracks.sequence import sequence_of

tifffile = pytest.importorskip("tifffile")
SIZE = (48, 64)  # height, width


@pytest.fixture
def bundle(tmp_path):
    """`bundle(train={…}, val=None, **keys of the data)` over a folder with one video, or several with `videos`."""

    def built(train=None, val=None, test=None, videos=1, seed=0, **keys):
        folder = tmp_path / "train"
        for number in range(videos):
            if not (folder / f"v{number}.csv").exists():
                write_stack(folder, f"v{number}", seed=number, size=SIZE)
        options = {"crop_size": 8, "clip_length": 4, **(train or {})}
        options.setdefault("dir", Directory(str(folder)))
        config = Config(
            train_dataset=Split(**options),
            val_dataset=None if val is None else Split(**val),
            test_dataset=None if test is None else Split(**test),
            **{"val_frames": 4, "channels": 1, **keys},
        )
        return build(config, SimpleNamespace(seed=seed, cache_dir=tmp_path / "cache"))

    return built


def epoch(bundle, number=0, seed=0):
    """The batch of all clips of an epoch, in the order of the clips."""
    sampler = bundle.sampler(seed)
    sampler.set_epoch(number)
    data = bundle.train_dataset
    return bundle.collate(data.__getitems__(sorted(sampler, key=lambda index: index % len(data))))


def held_out(bundle, name="validation"):
    return {"validation": bundle.eval_datasets, "test": bundle.test_datasets}[name][name]


# ---- crops and boxes ----


def test_crops_are_pixels_of_the_frame(bundle, tmp_path):
    """Non-square frames: y is divided by the height, x by the width."""
    places = write_stack(tmp_path / "train", "v0", size=SIZE)
    pixels = tifffile.imread(tmp_path / "train" / "v0.tif")
    batch = epoch(bundle())
    assert batch["crops"].shape == (2, 8, 1, 8, 8) and batch["crops"].dtype == torch.uint8
    for clip, slot in itertools.product(range(2), range(8)):
        frame, track = int(batch["frames"][clip, slot]), int(batch["identities"][clip, slot])
        x, y = places[frame, track]
        assert batch["points"][clip, slot, 0].tolist() == pytest.approx([y / 48, x / 64], abs=1e-6)
        box = batch["boxes"][clip, slot, 0] * torch.tensor([48, 64, 48, 64])
        assert box.tolist() == pytest.approx([y - 4, x - 4, y + 4, x + 4], abs=1e-3)
        top, left = round(y) - 4, round(x) - 4
        assert np.array_equal(batch["crops"][clip, slot, 0], pixels[frame, top : top + 8, left : left + 8])
        assert SHADES[track] in batch["crops"][clip, slot]
    assert batch["times"].tolist() == (batch["frames"] - torch.tensor([[0], [4]])).tolist()
    assert batch["mask"].all() and batch["video"].tolist() == [0, 0]


def test_a_crop_at_the_border_is_black_outside():
    image = np.full((10, 12, 1), 200, np.uint8)
    cutter = Cutter(4)
    centres = np.array([[[0.0, 10.0]], [[np.nan, np.nan]]])  # x at the left border, y at the lower one
    crops = cutter.crops(image, centres, centres)
    assert (crops[0, 0] == np.array([[0, 0, 200, 200]] * 2 + [[0] * 4] * 2)).all() and not crops[1].any()
    assert cutter.boxes(centres).tolist() == [[[8, -2, 12, 2]], [[0, 0, 0, 0]]]


def test_missing_anchors():
    points = np.array([[[1.0, 2], [3, 4]], [[np.nan, np.nan], [5, 6]], [[np.nan] * 2, [np.nan] * 2]])
    expected = {
        "drop": ([True, False, False], [[[1, 2]]]),
        "ignore": ([True, True, False], [[[1, 2]], [[np.nan, np.nan]]]),
        "centroid": ([True, True, False], [[[1, 2]], [[5, 6]]]),
    }
    for handling, (stays, centres) in expected.items():
        kept, found = Cutter(4, anchors=("head",), handle_missing=handling).centres(points, ("head", "tail"))
        assert kept.tolist() == stays and np.array_equal(found, centres, equal_nan=True)
    _, found = Cutter(4, anchors=("centroid", "tail")).centres(points[:1], ("head", "tail"))
    assert found.tolist() == [[[2, 3], [3, 4]]]


# ---- clips ----


def test_a_batch_of_clips_is_its_clips_with_padding(bundle, tmp_path):
    """Clips with different numbers of instances, one without in some frames."""
    places = write_stack(tmp_path / "train", "v0", size=SIZE)
    lines = (tmp_path / "train" / "v0.csv").read_text().splitlines()
    gone = [line for line in lines if not line.startswith(("1,", "2,")) and not line.startswith("7,t1")]
    (tmp_path / "train" / "gaps").mkdir()
    (tmp_path / "train" / "gaps" / "v.csv").write_text("\n".join(gone) + "\n8,,1,2\n")
    (tmp_path / "train" / "v0.tif").rename(tmp_path / "train" / "gaps" / "v.tif")
    made = bundle({"dir": Directory(str(tmp_path / "train" / "gaps"))})
    data, batch = made.train_dataset, epoch(made)
    assert batch["mask"].sum(1).tolist() == [4, 7] and batch["boxes"].shape[1] == 7
    assert batch["times"][0, :4].tolist() == [0, 0, 3, 3]
    assert batch["identities"][~batch["mask"]].tolist() == [-1] * 3 and not batch["crops"][~batch["mask"]].any()
    for number in range(2):
        alone = made.collate([data[number]])
        for name in ("boxes", "crops", "times", "identities"):
            assert torch.equal(batch[name][number, batch["mask"][number]], alone[name][0]), name
    last = made.collate([held_out(made)[0]])
    assert len(places) == 12 and sorted(last["truth_identities"][0].tolist()) == [-1, 0, 1]  # one without identity


@pytest.mark.slow
def test_the_order_in_a_frame_says_nothing(bundle):
    """It is a function of seed and epoch, different in each epoch; in evaluation it never changes."""
    orders = set()
    for number in range(8):
        batch = epoch(bundle(), number)
        assert all(torch.equal(batch[name], epoch(bundle(), number)[name]) for name in batch)
        orders.add(tuple(batch["identities"].flatten().tolist()))
    assert len(orders) == 8
    windows = held_out(bundle())
    shuffled = [frame.identities.tolist() for frame in windows.videos()[0].frames()]
    assert {tuple(order) for order in shuffled} == {(0, 1), (1, 0)}
    assert shuffled == [frame.identities.tolist() for frame in held_out(bundle()).videos()[0].frames()]


def test_a_data_set_can_be_sent_to_a_worker(bundle):
    data = bundle().train_dataset
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[5]["crops"], data[5]["crops"]) and data.where(5) == "v0, frames 4 to 7"


def test_windows_hold_the_frames_before_the_last(bundle):
    """A frame has the same detections in each window and in the whole video; none reaches beyond the held-out part."""
    data = held_out(bundle(tracker=TrackerSettings(window_size=2), scramble="rot90"))
    assert isinstance(data, Windows) and len(data) == 4
    frames = {frame.index: frame for frame in data.videos()[0].frames()}
    batch = bundle().collate([data[index] for index in range(4)])
    assert batch["frame"].tolist() == [8, 9, 10, 11] and batch["mask"].sum(1).tolist() == [2, 4, 6, 6]
    for row in range(4):
        last = batch["frames"][row] == batch["frame"][row]
        frame = frames[int(batch["frame"][row])]
        assert batch["image_size"][row].tolist() == list(frame.size)
        for index in set(batch["frames"][row][batch["mask"][row]].tolist()):
            rows = batch["mask"][row] & (batch["frames"][row] == index)
            assert np.array_equal(batch["crops"][row, rows], frames[index].crops)
        assert torch.equal(batch["truth_boxes"][row], batch["boxes"][row, last & batch["mask"][row], 0])


def test_turned_frames():
    """Boxes, points and crops turn as np.rot90 turns an image of one pixel for each place."""
    image = np.arange(6 * 8).reshape(6, 8, 1).astype(np.uint8)
    cutter, centres = Cutter(2), np.array([[[3.0, 2.0]], [[6.0, 4.0]]], np.float32)
    boxes, crops = cutter.boxes(centres), cutter.crops(image, centres, centres)
    frame = Frame(0, (6, 8), boxes, centres, crops, centres, np.arange(2), np.ones(2), np.arange(2))
    for quarters in range(5):
        turned = frame.turned(quarters)
        whole = np.rot90(image, quarters)
        assert turned.size == whole.shape[:2]
        for box, crop in zip(turned.boxes[:, 0].astype(int), turned.crops, strict=True):
            assert np.array_equal(whole[box[0] : box[2], box[1] : box[3], 0], crop[0])
        middle = (turned.boxes[..., :2] + turned.boxes[..., 2:])[..., ::-1] / 2
        assert np.array_equal(turned.centres, middle) and np.array_equal(turned.points, middle)
    missing = dataclasses.replace(frame, boxes=frame.boxes * 0, centres=frame.centres * np.nan)
    assert not missing.turned(1).boxes.any()


def test_frames_before_and_after_all_labels_do_not_count(bundle, tmp_path):
    """Nobody knows whether they are empty, so that none is held out."""
    write_stack(tmp_path / "train", "v0", size=SIZE)
    table = tmp_path / "train" / "v0.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[5:-4]]))  # two frames less on either side
    made = bundle()
    assert (made.train_dataset.videos()[0].start, held_out(made).videos()[0].stop) == (2, 10)
    assert sorted(set(epoch(made)["frames"].flatten().tolist())) == [2, 3, 4, 5]


def test_memory_does_not_grow_with_the_video():
    """Frames are made when they are asked for: a video of a million frames starts at once."""
    sequence = sequence_of(None, [0, 999_999], [[1, 2], [3, 4]], ["a", "a"])
    recording = Recording("v", sequence, None, Cutter(2), (10, 10), 0, 1_000_000)
    assert [len(frame) for frame in itertools.islice(recording.frames(), 3)] == [1, 0, 0]


# ---- keys of the data ----


@pytest.mark.keys("dataset(tracks).train_dataset", "dataset(tracks).val_dataset", "dataset(tracks).test_dataset")
def test_sections_name_data_sets(bundle, tmp_path):
    """A held-out section takes crops and anchors from train_dataset, and its own where it has them."""
    for name in ("val", "test"):
        write_stack(tmp_path / name, "other", frames=9, size=SIZE, seed=7)
    val_dataset = {"dir": Directory(str(tmp_path / "val"))}
    test_dataset = {"dir": Directory(str(tmp_path / "test")), "crop_size": 4}
    made = bundle({"padding": 1}, val=val_dataset, test=test_dataset)
    assert len(made.train_dataset) == 3 and set(made.metrics) == {"validation", "test"}
    (validation,), (test,) = held_out(made).videos(), held_out(made, "test").videos()
    assert (validation.cutter.box_side, test.cutter.box_side, len(validation), len(test)) == (10, 6, 9, 9)
    assert next(test.frames()).crops.shape == (2, 1, 10, 10)  # scaled to the size that the network is built for
    assert made.dims == {"crop_size": 10, "anchors": 1, "channels": 1, "clip_length": 4}


@pytest.mark.slow
@pytest.mark.keys("dataset(tracks).val_frames")
def test_the_last_frames_of_each_video_are_held_out(bundle):
    for val_frames in (3, 0.25):
        made = bundle(videos=2, val_frames=val_frames)
        assert [(video.start, video.stop) for video in made.train_dataset.videos()] == [(0, 9)] * 2
        assert [(video.start, video.stop) for video in held_out(made).videos()] == [(9, 12)] * 2
    assert bundle(val_frames=0).eval_datasets == {}
    with pytest.raises(ValueError, match="val_frames"):
        bundle(val_frames=12)
    with pytest.raises(ValueError, match="val_frames"):
        bundle(val_frames=1.5)


def test_a_video_too_short_for_the_share_trains_as_a_whole(bundle, tmp_path):
    """Of 12 frames .2 are 2, of 2 frames 0: nothing is held out there, which a line reports."""
    write_stack(tmp_path / "train", "short", frames=2, size=SIZE)
    made = bundle(val_frames=0.2)
    lengths = {video.name: (video.start, video.stop) for video in made.train_dataset.videos()}
    assert lengths == {"short": (0, 2), "v0": (0, 10)}
    assert [(video.name, video.start, video.stop) for video in held_out(made).videos()] == [("v0", 10, 12)]
    assert sum("short" in line for line in made.summary) == 1
    with pytest.raises(ValueError, match="val_frames"):
        bundle(val_frames=0.01)  # no frame of any video


@pytest.mark.slow
@pytest.mark.keys("dataset(tracks).scramble")
def test_scramble_turns_each_frame(bundle):
    """Training draws other turns in each epoch; those of held-out frames never change."""
    plain, first, second = epoch(bundle()), epoch(bundle(scramble="rot90")), epoch(bundle(scramble="rot90"), 1)
    assert not torch.equal(first["points"], second["points"])
    turns = [frame.quarters for frame in held_out(bundle(scramble="rot90", val_frames=8)).videos()[0].frames()]
    assert len(set(turns)) > 2 and turns == [
        frame.quarters for frame in held_out(bundle(scramble="rot90", val_frames=8)).videos()[0].frames()
    ]

    def by_instance(batch):
        columns = (batch[name].flatten(0, 1).tolist() for name in ("frames", "identities", "points"))
        return {(frame, identity): point for frame, identity, point in zip(*columns, strict=True)}

    found, places = by_instance(first), by_instance(plain)
    for key, [(y, x)] in places.items():
        possible = [[y, x], [1 - x, y], [1 - y, 1 - x], [x, 1 - y]]
        assert any(found[key][0] == pytest.approx(place, abs=1e-6) for place in possible)


@pytest.mark.keys("dataset(tracks).images", "dataset(tracks).image_size")
def test_coordinates_alone(bundle, tmp_path):
    """Without images no video is read; sizes are the given ones, or reach as far as the labels."""
    places = write_stack(tmp_path / "train", "v0", size=SIZE)
    made = bundle(images=False)
    (tmp_path / "train" / "v0.tif").unlink()
    assert "crops" not in epoch(made) and made.dims["channels"] == 0
    extent = (int(places[..., 1].max()) + 1, int(places[..., 0].max()) + 1)
    assert made.train_dataset.videos()[0].size == extent
    for batch in (epoch(made), epoch(bundle(images=False, image_size=[100, 200]))):
        height, width = (100, 200) if batch is not made and batch["points"].max() < 0.5 else extent
        frame, track = int(batch["frames"][0, 0]), int(batch["identities"][0, 0])
        x, y = places[frame, track]
        assert batch["points"][0, 0, 0].tolist() == pytest.approx([y / height, x / width], abs=1e-6)
    with pytest.raises(ValueError, match="image_size"):
        bundle(images=False, image_size=[100])
    with pytest.raises(ValueError, match="train_dataset.dilation_radius_px"):
        bundle({"dilation_radius_px": 2}, images=False)


@pytest.mark.keys("dataset(tracks).channels")
def test_channels(bundle):
    batch = epoch(bundle(channels=3))
    assert batch["crops"].shape[2] == 3 and torch.equal(batch["crops"][:, :, 0], batch["crops"][:, :, 2])
    assert torch.equal(batch["crops"][:, :, :1], epoch(bundle(channels=1))["crops"])


@pytest.mark.slow
@pytest.mark.keys("dataset(tracks).cache_gb")
def test_crops_are_kept_in_a_cache_named_by_content(bundle, tmp_path):
    lazy = bundle(cache_gb=0.0)
    assert not (tmp_path / "cache").exists()
    kept = bundle()
    assert torch.equal(epoch(lazy)["crops"], epoch(kept)["crops"])
    for one, other in zip(held_out(lazy), held_out(kept), strict=True):  # of the same videos, other frames
        assert np.array_equal(one["crops"], other["crops"]) and one["crops"].any()
    folders = {path.parent for path in (tmp_path / "cache" / "tracks").rglob("crops.npy")}
    bundle({"clip_length": 3})
    assert len(list((tmp_path / "cache" / "tracks").rglob("crops.npy"))) == len(folders) == 1
    bundle({"crop_size": 6})
    assert len(list((tmp_path / "cache" / "tracks").rglob("crops.npy"))) == 2


@pytest.mark.keys("dataset(tracks).tracker")
def test_the_window_of_the_tracker_decides_what_a_sample_holds(bundle):
    for tracker, frames in ((TrackerSettings(window_size=1), 2), (TrackerSettings(window_size=1, max_gap=2), 3)):
        last = held_out(bundle(tracker=tracker))[3]
        assert len(set(last["frames"].tolist())) == frames


# ---- keys of a section ----


def clips_of(made):
    return [(start, stop) for _, start, stop in made.train_dataset.clips]


def with_dir(bundle, folder):
    write_stack(folder / "a", "one", size=SIZE)
    write_stack(folder / "b", "two", size=SIZE)
    made = bundle({"dir": Directory([str(folder / "a"), str(folder / "b")], ".csv", ".tif")})
    assert [video.name for video in made.train_dataset.videos()] == ["one", "two"]


def with_files(bundle, folder):
    write_stack(folder / "a", "one", size=SIZE)
    files = {"slp_files": [f"{folder}/a/one.csv"], "video_files": [f"{folder}/a/one.tif"], "dir": None}
    assert [video.name for video in bundle(files).train_dataset.videos()] == ["one"]
    with pytest.raises(ValueError, match="slp_files"):
        bundle({**files, "dir": Directory(str(folder))})
    with pytest.raises(ValueError, match=r"1 slp_files and 0 video_files"):
        bundle({**files, "video_files": None})


def with_crop_sizes(bundle, folder):
    write_stack(folder / "a", "one", size=SIZE)
    write_stack(folder / "b", "two", size=SIZE)
    made = bundle({"dir": Directory([f"{folder}/a", f"{folder}/b"]), "crop_size": [4, 8]})
    assert [video.cutter.crop_size for video in made.train_dataset.videos()] == [4, 8] and made.dims["crop_size"] == 8
    sides = (epoch(made)["boxes"][..., 2] - epoch(made)["boxes"][..., 0]) * 48
    assert sides.flatten(1).mean(1).round().tolist() == [4, 4, 8, 8] and epoch(made)["crops"].shape[-1] == 8
    assert [video.cutter.crop_size for video in held_out(made).videos()] == [4, 8]


def with_padding(bundle, folder):
    wide, plain = epoch(bundle({"padding": 2})), epoch(bundle())
    assert wide["crops"].shape[-1] == 12 and torch.equal(wide["crops"][..., 2:-2, 2:-2], plain["crops"])
    assert torch.allclose((wide["boxes"] - plain["boxes"])[..., 2] * 48, torch.tensor(2.0), atol=1e-4)


def with_clip_length(bundle, folder):
    assert clips_of(bundle({"clip_length": 3})) == [(0, 3), (3, 6), (6, 8)]
    assert bundle({"clip_length": 3}).dims["clip_length"] == 3


def with_chunk(bundle, folder):
    """Of held-out videos each clip is a video of its own, in which no window reaches into another."""
    assert clips_of(bundle({"chunk": False})) == [(0, 8)] and bundle({"chunk": False}).dims["clip_length"] == 8
    parts = held_out(bundle(val={"chunk": True, "clip_length": 2})).videos()
    assert [(part.start, part.stop) for part in parts] == [(8, 10), (10, 12)]
    assert len(held_out(bundle(val={"chunk": False})).videos()) == 1


def with_n_chunks(bundle, folder):
    """Drawn once by the seed: the same in each epoch."""
    whole = clips_of(bundle({"clip_length": 2}))
    for n_chunks, count in ((2, 2), (0.5, 2), (1.0, 4), (9, 4)):
        kept = clips_of(bundle({"clip_length": 2, "n_chunks": n_chunks}))
        assert len(kept) == count and set(kept) <= set(whole)
    drawn = {tuple(clips_of(bundle({"clip_length": 2, "n_chunks": 1}, seed=seed))) for seed in range(6)}
    assert len(drawn) > 1
    assert len(held_out(bundle(val={"chunk": True, "clip_length": 2, "n_chunks": 1}))) == 2
    with pytest.raises(ValueError, match="n_chunks"):
        bundle({"n_chunks": 1.5})


def slp(folder):
    pytest.importorskip("sleap_io")
    write_stack(folder / "poses", "v", size=SIZE)
    write_slp(folder / "poses" / "v.slp", positions(12, 2, SIZE, 0), nodes=("head", "body", "tail"))
    return {"dir": Directory(str(folder / "poses"), ".slp"), "crop_size": 6}


def with_anchors(bundle, folder):
    """A node, several (channels one after another), or a number that draws other ones for each clip."""
    options = slp(folder)
    head, both = (epoch(bundle({**options, "anchors": anchors})) for anchors in ("head", ["head", "tail"]))
    assert torch.equal(both["crops"][:, :, 0], head["crops"][:, :, 0]) and both["crops"].shape[2] == 2
    assert torch.allclose((both["points"][:, :, 1] - both["points"][:, :, 0]) * 64, torch.tensor([0.0, 6.0]), atol=1e-4)
    centred = epoch(bundle({**options, "anchors": "centroid"}))
    assert torch.allclose((centred["points"] - head["points"]) * 64, torch.tensor([0.0, 3.0]), atol=1e-4)
    made = bundle({**options, "anchors": 2})
    shifts = [
        (batch["points"][:, :, 1] - batch["points"][:, :, 0])[:, 0, 1] * 64
        for batch in map(epoch, [made] * 4, range(4))
    ]
    assert made.dims["anchors"] == 2 and len(torch.cat(shifts).round().unique()) > 2
    windows = held_out(made)
    assert np.array_equal(windows[3]["points"][:2], windows[2]["points"][:2])  # one draw for all windows
    for wrong in ("nose", 5, [], 0):
        with pytest.raises(ValueError, match="anchors"):
            bundle({**options, "anchors": wrong})


def with_handle_missing(bundle, folder):
    options = slp(folder)
    lost = positions(12, 2, SIZE, 0)
    path = write_slp(folder / "poses" / "v.slp", lost, nodes=("head", "body", "tail"))
    import sleap_io

    labels = sleap_io.load_slp(str(path), open_videos=False)
    labels[0].instances[0]["head"] = (np.nan, np.nan)
    labels.save(str(path), embed=False, verbose=False)
    counts, boxes = {}, {}
    for handling in ("drop", "ignore", "centroid"):
        sample = bundle({**options, "anchors": "head", "handle_missing": handling}).train_dataset[0]
        counts[handling], boxes[handling] = len(sample["times"]), sample["boxes"]
    assert counts == {"drop": 7, "ignore": 8, "centroid": 8}
    assert (~boxes["ignore"].any((1, 2))).sum() == 1 and boxes["centroid"].any((1, 2)).all()


def with_dilation(bundle, folder):
    """Pixels stay within the radius of a node, by hand."""
    masked, plain = epoch(bundle({"dilation_radius_px": 2})), epoch(bundle())
    y, x = np.mgrid[:8, :8]
    for clip, slot in itertools.product(range(2), range(8)):
        place = (
            plain["points"][clip, slot, 0].numpy() * SIZE - np.round(plain["points"][clip, slot, 0].numpy() * SIZE) + 4
        )
        near = np.hypot(y - place[0], x - place[1]) <= 2
        assert np.array_equal(masked["crops"][clip, slot, 0], np.where(near, plain["crops"][clip, slot, 0], 0))


def with_mode(bundle, folder):
    """`val`: the same random numbers in each epoch, held-out frames are scored; `train`: clips for the loss alone."""
    fixed = bundle({"mode": "val"})
    assert torch.equal(epoch(fixed, 0)["identities"], epoch(fixed, 3)["identities"])
    made = bundle(val={"mode": "train", "clip_length": 2})
    assert type(held_out(made)) is Clips and len(held_out(made)) == 2 and made.metrics == {}
    thinned = bundle({"mode": "val", "augmentations": {"InstanceDropout": {"p": 0.5}}})
    assert torch.equal(epoch(thinned, 0)["boxes"], epoch(thinned, 3)["boxes"])
    assert 0 < epoch(thinned)["mask"].sum() < epoch(fixed)["mask"].sum()


def with_augmentations(bundle, folder):
    dropped = epoch(bundle({"augmentations": {"InstanceDropout": {"p": 0.5}}}))
    assert 0 < dropped["mask"].sum() < 16


SECTION = {
    "dir": with_dir,
    "slp_files": with_files,
    "video_files": with_files,
    "crop_size": with_crop_sizes,
    "padding": with_padding,
    "clip_length": with_clip_length,
    "chunk": with_chunk,
    "n_chunks": with_n_chunks,
    "anchors": with_anchors,
    "handle_missing": with_handle_missing,
    "dilation_radius_px": with_dilation,
    "mode": with_mode,
    "augmentations": with_augmentations,
}


@pytest.mark.slow
@pytest.mark.parametrize("key", SECTION)
def test_a_key_of_a_section_has_an_effect(key, bundle, tmp_path):
    SECTION[key](bundle, tmp_path / key)


def test_each_key_of_a_section_is_among_them():
    assert {field.name for field in dataclasses.fields(Split)} == set(SECTION)
