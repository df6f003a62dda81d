"""Images of demonstrations, against OpenCV and the frames that were written."""

import io
import itertools

import cv2
import h5py
import numpy as np
import pytest
import torch
from demonstration_files import assert_same, build_act, everything, write_act_episode, write_act_folder
from documents import SHARED
from PIL import Image

from data.demonstrations.images import MEAN_COLOUR

CAMERAS = {"top": (24, 32), "wrist": (24, 32)}
LENGTHS = (20, 12, 31)


@pytest.fixture
def written(tmp_path) -> list[dict]:
    return write_act_folder(tmp_path / "act", LENGTHS, cameras=CAMERAS)


@pytest.mark.keys("image_aspect_ratio", "dataset(demonstrations).image_size")
@pytest.mark.parametrize("mode", ["square", "pad", "keep"])
def test_image_aspect_ratio(tmp_path, mode):
    (arrays,) = write_act_folder(tmp_path / "act", (2,), cameras={"top": (30, 40)})
    frame = arrays["observations/images/top"][1]
    size = None if mode == "keep" else [15, 24]
    bundle = build_act(tmp_path, {"image_aspect_ratio": mode}, image_size=size)
    image = bundle.train_dataset[1]["images"][0].numpy().transpose(1, 2, 0)
    if mode == "square":
        expected = cv2.resize(frame, (24, 15), interpolation=cv2.INTER_AREA)
    elif mode == "pad":  # 30 x 40 fits as 15 x 20, leaving 2 columns on each side
        expected = np.tile(np.uint8(MEAN_COLOUR), (15, 24, 1))
        expected[:, 2:22] = cv2.resize(frame, (20, 15), interpolation=cv2.INTER_AREA)
    else:
        expected = frame
    np.testing.assert_array_equal(image, expected)


def test_image_size_follows_from_the_frames(tmp_path):
    write_act_folder(tmp_path / "act", (2,), cameras={"top": (30, 40)})
    sizes = {}
    for mode in ("square", "pad", "keep"):
        dims = build_act(tmp_path, {"image_aspect_ratio": mode}).dims
        sizes[mode] = (dims["image_height"], dims["image_width"])
    assert sizes == {"square": (30, 30), "pad": (40, 40), "keep": (30, 40)}


@pytest.mark.slow
@pytest.mark.keys("is_multimodal", "dataset(demonstrations).cameras")
def test_is_multimodal_and_cameras_choose_the_images(tmp_path, written):
    blind = build_act(tmp_path, {"is_multimodal": False})
    assert "images" not in blind.train_dataset[0] and blind.dims["num_images"] == blind.dims["image_height"] == 0
    assert "images" not in build_act(tmp_path, cameras=[]).train_dataset[0]
    both = build_act(tmp_path, cameras=["wrist", "top"]).train_dataset[5]["images"]
    for number, camera in enumerate(["wrist", "top"]):
        only = build_act(tmp_path, cameras=[camera]).train_dataset[5]["images"]
        assert torch.equal(only[0], both[number])


@pytest.mark.slow
@pytest.mark.keys("history_images_length")
def test_history_repeats_the_first_frame_and_goes_camera_by_camera(tmp_path, written):
    dataset = build_act(tmp_path, {"history_images_length": 3}, image_size=[24, 32]).train_dataset
    for episode, step in [(0, 0), (0, 1), (1, 0), (1, 7), (2, 30)]:
        images = dataset[sum(LENGTHS[:episode]) + step]["images"]
        steps = [max(step - 2, 0), max(step - 1, 0), step]
        expected = [written[episode][f"observations/images/{camera}"][t] for camera in CAMERAS for t in steps]
        np.testing.assert_array_equal(images, np.stack(expected).transpose(0, 3, 1, 2))


def compressed(frames: np.ndarray, form: str, suffix: str = ".png") -> dict:
    """Arguments of `create_dataset` for frames encoded one by one, as ALOHA's recorder does."""
    rows = [cv2.imencode(suffix, frame)[1].ravel() for frame in frames]
    if form == "padded":
        data = np.zeros((len(rows), max(map(len, rows)) + 7), np.uint8)
        for target, row in zip(data, rows, strict=True):
            target[: len(row)] = row
        return {"data": data}
    if form == "strings":
        return {"data": np.asarray([row.tobytes() for row in rows])}
    data = np.empty(len(rows), object)
    data[:] = rows
    return {"data": data, "dtype": h5py.vlen_dtype(np.uint8)}


def write_compressed(tmp_path, form: str, suffix: str = ".png") -> list[dict]:
    """Episodes in `tmp_path/act` whose cameras hold encoded frames; returns the plain ones beside them."""
    written = write_act_folder(tmp_path / "plain", LENGTHS, cameras=CAMERAS)
    for number, arrays in enumerate(written):
        file = tmp_path / f"act/episode_{number}.hdf5"
        write_act_episode(file, LENGTHS[number], seed=number)
        with h5py.File(file, "r+") as root:
            for camera in CAMERAS:
                key = f"observations/images/{camera}"
                root.create_dataset(key, **compressed(arrays[key], form, suffix))
    return written


@pytest.mark.slow
@pytest.mark.parametrize("form", ["padded", "variable", "strings"])
def test_compressed_frames_are_read_as_plain_ones(tmp_path, monkeypatch, form):
    """PNG loses nothing, so that every sample must be equal, with the channels in the order of the recording."""
    write_compressed(tmp_path, form)
    plain = everything(build_act(tmp_path, path=str(tmp_path / "plain"), image_size=[10, 12]).train_dataset)
    assert not np.array_equal(plain["images"][..., 0, :, :], plain["images"][..., 2, :, :])
    for lazy, preload, serial in itertools.product([False, True], [False, True], [0, 2000]):
        monkeypatch.setattr("data.demonstrations.frames.SERIAL_FRAMES", serial)
        monkeypatch.setattr("__main__.__file__", "<stdin>", raising=False)  # which no worker can import
        process = {"lazy_preprocess": lazy, "preload_data": preload, "cache_dir": None}
        assert_same(everything(build_act(tmp_path, process, image_size=[10, 12]).train_dataset), plain)


@pytest.mark.slow
def test_jpeg_frames_are_decoded_once(tmp_path, monkeypatch):
    written = write_compressed(tmp_path, "padded", ".jpg")
    images = everything(build_act(tmp_path, image_size=[24, 32]).train_dataset)["images"]
    difference = np.abs(images[0, 0].numpy().transpose(1, 2, 0) - written[0]["observations/images/top"][0].astype(int))
    assert 0 < difference.mean() < 8
    monkeypatch.setattr("data.demonstrations.layouts.decode", None)
    assert torch.equal(everything(build_act(tmp_path, image_size=[24, 32]).train_dataset)["images"], images)


@pytest.mark.parametrize("name", ["jpegpad", "jpegvlen"])
def test_cases_of_compressed_aloha_frames(tmp_path, name):
    folder = SHARED / "cases/episodes" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    bundle = build_act(tmp_path, {"image_aspect_ratio": "keep"}, path=str(folder))
    assert bundle.train_dataset.lengths.tolist() == [20, 27, 34, 41]
    with h5py.File(folder / "episode_1.hdf5") as root:
        rows = root["observations/images/top"][()]
    for step in (0, 26):
        # Pillow returns red, green, blue of the file; the recorder passed its frames to OpenCV as if blue came first.
        expected = np.asarray(Image.open(io.BytesIO(bytes(rows[step]))))[..., ::-1]
        image = bundle.train_dataset[20 + step]["images"][0].numpy().transpose(1, 2, 0)
        assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["padded", "variable"])
@pytest.mark.parametrize(("number", "step"), [(0, 0), (1, 7)])
def test_an_incomplete_image_names_file_key_and_step(tmp_path, form, number, step):
    write_compressed(tmp_path, form, ".jpg")
    file = tmp_path / f"act/episode_{number}.hdf5"
    for half in (True, False):
        with h5py.File(file, "r+") as root:
            frames = root["observations/images/top"]
            row = frames[step]
            row = np.where(np.arange(len(row)) < len(row) // 2, row, 0).astype(np.uint8) if half else row * 0
            frames[step] = row
        with pytest.raises(ValueError, match=f"{file}: observations/images/top step {step}: ") as caught:
            build_act(tmp_path)
        assert "\n" not in str(caught.value)
    if step:  # the first frame of an episode is read before training
        lazy = build_act(tmp_path, {"lazy_preprocess": True})
        with pytest.raises(ValueError, match=f"{file}: observations/images/top step {step}: "):
            lazy.train_dataset[LENGTHS[0] + step]


@pytest.mark.slow
def test_cameras_of_some_episodes_are_counted_and_left_out(tmp_path):
    for number, cameras in enumerate([["top"], ["top", "wrist", "side"], ["top", "wrist"]]):
        sizes = dict.fromkeys(cameras, (8, 8))
        write_act_episode(tmp_path / f"act/episode_{number}.hdf5", 5, cameras=sizes)
    for _ in range(2):  # from the files, then from the cache
        bundle = build_act(tmp_path)
        assert bundle.dims["num_images"] == 1
        counts = {line.split()[1]: line.split()[4:6] for line in bundle.summary if line.startswith("camera ")}
        assert counts == {"side": ["1", "of"], "wrist": ["2", "of"]}
    assert not [line for line in build_act(tmp_path, cameras=["top"]).summary if line.startswith("camera ")]
    (tmp_path / "act/episode_0.hdf5").unlink()
    assert build_act(tmp_path).dims["num_images"] == 2


def test_case_later_camera(tmp_path):
    folder = SHARED / "cases/episodes/later_camera"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    bundle = build_act(tmp_path, path=str(folder))
    assert bundle.dims["num_images"] == 1 and any("wrist is in 1 of 2 episodes" in line for line in bundle.summary)
