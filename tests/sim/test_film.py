"""Films and frames. What renders is skipped where neither EGL nor OSMesa can."""

import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from fresh_interpreter import python
from PIL import Image
from simulated_policies import Still

from sim.aloha import Config, make
from sim.film import contact_sheet, film, write_video
from sim.record import record
from sim.rollout import rollout

SHORT = Config(task="transfer_cube", episode_steps=20)


@pytest.fixture
def opengl():
    try:
        make(Config(task="transfer_cube", cameras=["top"], image_height=16, image_width=16))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def frames():
    """Ten frames (240, 320, 3) that grow brighter."""
    return [np.full((240, 320, 3), 20 * index, np.uint8) for index in range(10)]


def test_contact_sheet_shows_even_times_from_first_to_last(frames, tmp_path):
    contact_sheet(frames, tmp_path / "sheet.png", columns=2, rows=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 120, 2 * 160, 3)
    assert sheet[::120, ::160, 0].tolist() == [[0, 60], [120, 180]]  # frames 0, 3, 6, 9
    contact_sheet(frames[:3], tmp_path / "short.png", columns=2, rows=2)
    assert np.asarray(Image.open(tmp_path / "short.png"))[::120, ::160, 0].tolist() == [[0, 20], [40, 255]]


@pytest.mark.slow
def test_video_has_all_frames_at_their_rate(frames, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "video.mp4"
    write_video(frames, 10, path)
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == 10 and seconds == pytest.approx(1.0, abs=0.05)


def test_without_the_video_package_one_line_says_so(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sim.film.run", lambda *args, **options: iter([(None, write_video(frames, 10, tmp_path / "v"))])
    )
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    lines = []
    assert film(SHORT, [], tmp_path, report=lines.append) == []
    assert len(lines) == 1 and "imageio" in lines[0] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rollout_is_filmed(opengl, tmp_path):
    results = rollout(Still, SHORT, 2, seed=5, num_workers=0, film_episodes=1, report=print)
    paths = film(SHORT, results, tmp_path / "films")
    assert {path.name for path in paths} == {"rollout_5.mp4", "rollout_5.png"}
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.slow
def test_where_nothing_renders_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "off")
    results = rollout(Still, SHORT, 1, seed=5, num_workers=0, film_episodes=1, report=print)
    lines = []
    assert film(SHORT, results, tmp_path, report=lines.append) == []
    assert len(lines) == 1 and lines[0].startswith("no film: MUJOCO_GL=off cannot render")


@pytest.mark.slow
@pytest.mark.keys("env(aloha).cameras", "env(aloha).image_height", "env(aloha).image_width", "env(aloha).shadows")
def test_a_camera_is_rendered_in_its_size_and_differently_lit_with_shadows(opengl):
    small = Config(task="transfer_cube", cameras=["top"], image_height=96, image_width=128)
    plain, shadowed = (
        make(config).reset(0)["observations/images/top"] for config in (small, replace(small, shadows=True))
    )
    assert plain.shape == (96, 128, 3) and plain.dtype == np.uint8
    assert not np.array_equal(plain, shadowed)
    red = (plain[..., 0] > 150) & (plain[..., 1] < 60)  # the cube, seen from above, right of the middle
    assert red.any() and red.nonzero()[1].mean() > 64


@pytest.mark.slow
def test_frames_equal_dm_controls(opengl):
    """Our renderer against `Physics.render` in a process where dm_control may render, pixel by pixel."""
    printed = python(
        "import os; os.environ.setdefault('MUJOCO_GL', 'egl')\n"
        "from dm_control import mujoco\n"
        "from sim.aloha import Config, make\n"
        "import numpy as np\n"
        "environment = make(Config(task='transfer_cube', cameras=['angle']))\n"
        "ours = environment.reset(3)['observations/images/angle']\n"
        "theirs = environment.physics.render(480, 640, 'angle', render_flag_overrides={'shadow': False})\n"
        "print(np.abs(ours.astype(int) - theirs).max())"
    )
    assert int(printed) <= 1


@pytest.mark.slow
def test_two_renderers_of_a_process_do_not_disturb_each_other(opengl):
    config = Config(task="transfer_cube", cameras=["top"], image_height=48, image_width=64)
    one = make(config)
    before = one.reset(0)["observations/images/top"]
    other = make(config)
    other.reset(1)
    del other  # its buffers are freed; the first one's must stay
    assert np.array_equal(one.reset(0)["observations/images/top"], before)


@pytest.mark.slow
def test_recorded_images_do_not_depend_on_the_process(opengl, tmp_path):
    config = Config(task="transfer_cube", cameras=["top"], image_height=32, image_width=48)
    images = []
    for count in (0, 1):
        record(config, tmp_path / str(count), 1, seed=0, num_workers=count)
        with h5py.File(tmp_path / str(count) / "episode_0.hdf5") as file:
            dataset = file["observations/images/top"]
            assert dataset.chunks == (1, 32, 48, 3) and dataset.compression == "lzf"
            images.append(dataset[()])
    assert np.array_equal(*images)
