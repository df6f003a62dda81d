"""Images of demonstrations, against OpenCV and the frames that were written."""

import cv2
import numpy as np
import pytest
import torch
from demonstration_files import build_act, write_act_folder

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


@pytest.mark.keys("is_multimodal", "dataset(demonstrations).cameras")
def test_is_multimodal_and_cameras_choose_the_images(tmp_path, written):
    blind = build_act(tmp_path, {"is_multimodal": False})
    assert "images" not in blind.train_dataset[0] and blind.dims["num_images"] == blind.dims["image_height"] == 0
    assert "images" not in build_act(tmp_path, cameras=[]).train_dataset[0]
    both = build_act(tmp_path, cameras=["wrist", "top"]).train_dataset[5]["images"]
    for number, camera in enumerate(["wrist", "top"]):
        only = build_act(tmp_path, cameras=[camera]).train_dataset[5]["images"]
        assert torch.equal(only[0], both[number])


@pytest.mark.keys("history_images_length")
def test_history_repeats_the_first_frame_and_goes_camera_by_camera(tmp_path, written):
    dataset = build_act(tmp_path, {"history_images_length": 3}, image_size=[24, 32]).train_dataset
    for episode, step in [(0, 0), (0, 1), (1, 0), (1, 7), (2, 30)]:
        images = dataset[sum(LENGTHS[:episode]) + step]["images"]
        steps = [max(step - 2, 0), max(step - 1, 0), step]
        expected = [written[episode][f"observations/images/{camera}"][t] for camera in CAMERAS for t in steps]
        np.testing.assert_array_equal(images, np.stack(expected).transpose(0, 3, 1, 2))
