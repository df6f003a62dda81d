"""Augmentation of clips: albumentations' transforms on image, nodes and boxes together, and dropout of labels."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest
from track_files import images, positions

from data.tracks.augment import Augment
from data.tracks.crops import Cutter
from data.tracks.recording import Recording
from data.tracks.sequence import sequence_of
from data.tracks.video import Video

SIZE = (40, 60)


class Pixels(Video):
    """A video in memory, (frames, H, W) uint8."""

    def __init__(self, pixels):
        super().__init__("memory", 1)
        self.pixels, self.size = pixels, pixels.shape[1:]

    def __len__(self):
        return len(self.pixels)

    def frames(self, start, stop):
        return iter(self.pixels[start:stop, ..., None])


def recording(augmentations=None, frames=6, tracks=3, boxes=None, noise=True):
    """Three dots with two nodes each: the place and 2 px to its right."""
    pytest.importorskip("albumentations")
    places = positions(frames, tracks, SIZE, 0).reshape(-1, 1, 2)
    points = np.concatenate([places, places + (2, 0)], 1)
    sequence = sequence_of(
        None,
        np.repeat(np.arange(frames), tracks),
        points,
        list(range(tracks)) * frames,
        nodes=("head", "tail"),
        **({} if boxes is None else {"boxes": boxes}),
    )
    pixels = images(places.reshape(frames, tracks, 2), SIZE) if noise else np.full((frames, *SIZE), 100, np.uint8)
    augment = Augment(augmentations) if augmentations else None
    return Recording("v", sequence, Pixels(pixels), Cutter(8, anchors=("head",)), SIZE, 0, frames, augment=augment)


def by_row(made, seed=(0,), **options):
    """Row of the sequence -> (frame, place in it)"""
    return {int(row): (frame, index) for frame in made.frames(seed, **options) for index, row in enumerate(frame.rows)}


@pytest.mark.slow
def test_image_nodes_and_boxes_move_together():
    """A flip by hand: pixels, centres of crops, nodes and boxes of their own."""
    boxes = np.tile([[5.0, 10, 9, 30]], (18, 1))
    plain, flipped = (by_row(recording(what, boxes=boxes)) for what in (None, {"HorizontalFlip": {"p": 1}}))
    assert set(plain) == set(flipped)
    for row, (frame, index) in plain.items():
        other, place = flipped[row]
        # albumentations counts pixels from their centres: x becomes W - 1 - x
        expected = frame.points[index] * (-1, 1) + (SIZE[1] - 1, 0)
        assert np.allclose(other.points[place], expected) and np.allclose(other.centres[place, 0], expected[0])
        assert other.boxes[place].tolist() == [[5, SIZE[1] - 31, 9, SIZE[1] - 11]]
        left, top = np.floor(expected[0] - 4 + 0.5).astype(int)
        padded = np.pad(np.fliplr(recording().video.pixels[frame.index]), 8)  # black outside
        assert np.array_equal(other.crops[place, 0], padded[top + 8 : top + 16, left + 8 : left + 16])


@pytest.mark.slow
def test_what_moves_pixels_is_the_same_in_a_clip():
    """Distances between instances and between frames stay as they were; another seed draws another rotation."""
    plain, first, again, other = (
        by_row(recording(what, noise=False), seed)
        for what, seed in (
            (None, (0,)),
            ({"Rotate": {"limit": [20, 40], "p": 1}}, (0,)),
            ({"Rotate": {"limit": [20, 40], "p": 1}}, (0,)),
            ({"Rotate": {"limit": [20, 40], "p": 1}}, (4,)),
        )
    )
    rows = sorted(set(first) & set(other))
    assert len(rows) > 9
    place = {
        name: np.stack([found[row][0].points[found[row][1], 0] for row in rows])
        for name, found in (("plain", plain), ("first", first), ("again", again), ("other", other))
    }
    for name in ("first", "other"):
        gaps = [np.linalg.norm(place[kind][:, None] - place[kind][None], axis=-1) for kind in ("plain", name)]
        assert np.allclose(*gaps, atol=1e-3)
        assert not np.allclose(place["plain"], place[name], atol=1)
    assert np.array_equal(place["first"], place["again"]) and not np.allclose(place["first"], place["other"], atol=1)


def test_what_changes_values_is_drawn_for_each_frame():
    frames = list(
        recording({"RandomBrightnessContrast": {"brightness_limit": [0.1, 0.5], "p": 1}}, noise=False).frames()
    )
    shades = [frame.crops.max() for frame in frames]
    assert len(set(shades)) > 3 and min(shades) > 100


def test_instances_outside_of_the_frame_are_left_out():
    made = recording({"Affine": {"translate_px": {"x": [-30, -30], "y": [0, 0]}, "p": 1}}, noise=False)
    plain, moved = by_row(recording(noise=False)), by_row(made)
    inside = {row for row, (frame, index) in plain.items() if frame.points[index, :, 0].max() - 30 >= 0}
    assert set(moved) == inside and 0 < len(inside) < len(plain)


@pytest.mark.parametrize(("options", "least", "most"), [({"p": 0.5}, 0, 3), ({"p": 1, "n": 2}, 1, 1), ({"p": 0}, 3, 3)])
def test_instance_dropout(options, least, most):
    counts = [len(frame) for frame in recording({"InstanceDropout": options}, frames=40).frames()]
    assert (min(counts), max(counts)) == (least, most)
    assert [len(frame) for frame in recording({"InstanceDropout": options}, frames=40).frames(drops=False)] == [3] * 40


def test_node_dropout():
    """A node goes from all instances of a frame; the crop then is where `handle_missing` says."""
    frames = list(recording({"NodeDropout": {"p": 1, "n": 1}}, frames=40).frames())
    gone = [np.isnan(frame.points).all((0, 2)).tolist() for frame in frames]
    assert {tuple(nodes) for nodes in gone} == {(True, False), (False, True)}
    for frame, (head, _) in zip(frames, gone, strict=True):
        assert np.allclose(frame.centres[:, 0], frame.points[:, 1 if head else 0])


def test_an_augmented_recording_can_be_sent_to_a_worker():
    made = recording({"Rotate": {"p": 1}, "GaussianBlur": {"blur_limit": [3, 7], "sigma_limit": 0.1}})
    again = pickle.loads(pickle.dumps(made))
    for ours, theirs in zip(made.frames(), again.frames(), strict=True):
        assert np.array_equal(ours.crops, theirs.crops) and np.array_equal(ours.points, theirs.points)


def test_without_images_coordinates_move():
    made = dataclasses.replace(recording({"HorizontalFlip": {"p": 1}}), video=None)
    for row, (frame, index) in by_row(made).items():
        assert frame.crops is None
        assert np.allclose(frame.points[index, 0, 0], SIZE[1] - 1 - made.sequence.points[row, 0, 0])


@pytest.mark.parametrize(
    ("augmentations", "named"),
    [
        ({"Rotat": None}, "Rotate"),
        ({"InstancDropout": None}, "InstanceDropout"),
        ({"Rotate": {"limt": 3}}, "limit"),
        ({"MotionBlur": {"blur_limit": "x"}}, "MotionBlur"),
        ({"InstanceDropout": {"p": 2}}, "InstanceDropout"),
        ({"NodeDropout": {"m": 2}}, "`m`"),
        ({"Compose": None}, "Compose"),
        ({"Normalize": None}, "Normalize"),
        ({"Rotate": 3}, "Rotate: 3"),
    ],
)
def test_refusals(augmentations, named):
    pytest.importorskip("albumentations")
    with pytest.raises(ValueError, match=named) as error:
        Augment(augmentations)
    assert "\n" not in str(error.value)


def test_what_has_no_effect_without_images():
    pytest.importorskip("albumentations")
    named = Augment({"MotionBlur": {"p": 1}, "Rotate": None, "NodeDropout": None, "Blur": None}).without_images()
    assert named == ["MotionBlur", "Blur"]


@pytest.mark.slow
def test_albumentations_does_not_ask_the_network(monkeypatch):
    pytest.importorskip("albumentations")
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "albumentations"]:
        monkeypatch.delitem(sys.modules, name)
    import urllib.request

    def refuse(*arguments, **options):
        raise AssertionError("a request")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    Augment({"Rotate": None})
