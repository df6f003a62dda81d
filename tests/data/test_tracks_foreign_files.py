"""Files of tracks as other programs and systems write them: names, gaps, units, films in AVI."""

import numpy as np
import pytest
from track_files import write_film, write_stack

from data.processor import Source
from data.tracks.config import Directory, Split, TrackerSettings
from data.tracks.crops import Cutter
from data.tracks.find import find_sources, read_labels
from data.tracks.processor import Processor
from data.tracks.video import open_video

tifffile = pytest.importorskip("tifffile")


@pytest.mark.parametrize(("labels", "video"), [(".csv", ".TIF"), (".CSV", ".tif")])
@pytest.mark.parametrize("given", [(None, None), (".csv", ".tif"), ("CSV", "TIF")])
def test_endings_in_capitals_and_hidden_files(tmp_path, labels, video, given):
    write_stack(tmp_path, "v")
    (tmp_path / "v.csv").rename(tmp_path / f"v{labels}")
    (tmp_path / "v.tif").rename(tmp_path / f"v{video}")
    for name in ("._v.csv", "._v.tif", "._v.mp4"):  # macOS writes them to foreign disks
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (source,) = find_sources(Split(dir=Directory(str(tmp_path), *given)), "dataset.train_dataset", True)
    assert (source.labels.name, source.video.name) == (f"v{labels}", f"v{video}")
    assert len(read_labels(source.labels)) == 24 and len(open_video(source.video, 1)) == 12


def test_hidden_label_images(tmp_path):
    for number in range(2):
        tifffile.imwrite(tmp_path / f"mask{number:03}.tif", np.eye(9, dtype=np.uint16))
        (tmp_path / f"._mask{number:03}.tif").write_bytes(b"\0\5\x16\7")
    assert read_labels(tmp_path).frames.tolist() == [0, 1] and len(open_video(tmp_path, 1)) == 2


def test_blank_lines_and_empty_places_of_a_table(tmp_path):
    """As pandas and editors write them, with Windows' line ends."""
    (tmp_path / "a.csv").write_bytes(b"frame,x,y,track\r\n0,1,2,a\r\n1,,,a\r\n\r\n2,3,4,a\r\n\r\n")
    sequence = read_labels(tmp_path / "a.csv")
    assert sequence.frames.tolist() == [0, 2] and sequence.points[:, 0].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "b.csv").write_text("frame,x,y\n0,left,2\n1,3,4\n")  # no line of units
    with pytest.raises(ValueError, match=r"b.csv:2"):
        read_labels(tmp_path / "b.csv")


@pytest.mark.parametrize("unit", ["micron", "pixel"])
def test_coordinates_in_other_units_are_noted(tmp_path, unit):
    (tmp_path / "a.csv").write_text(f"POSITION_X,POSITION_Y,FRAME\nX,Y,Frame\n({unit}),({unit}),\n1,2,0\n")
    spots = '<particle><detection t="0" x="1" y="2"/></particle>'
    (tmp_path / "a.xml").write_text(f'<Tracks spaceUnits="{unit}">{spots}</Tracks>')
    for name in ("a.csv", "a.xml"):
        notes = read_labels(tmp_path / name).notes
        assert ([unit in note for note in notes] == [True]) if unit == "micron" else not notes


def test_spots_that_trackmate_filtered_out(tmp_path):
    spots = [f'<Spot ID="{n}" FRAME="{n}" POSITION_X="{n}" POSITION_Y="1" VISIBILITY="{n % 2}"/>' for n in range(4)]
    (tmp_path / "a.xml").write_text(f"<TrackMate><AllSpots>{''.join(spots)}</AllSpots></TrackMate>")
    assert read_labels(tmp_path / "a.xml").frames.tolist() == [1, 3]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_film_in_avi_with_b_frames(tmp_path, codec):
    """The container has no time stamps; each frame has its own brightness."""
    pytest.importorskip("av")
    pixels = np.repeat(np.arange(0, 200, 10, dtype=np.uint8), 48 * 64).reshape(-1, 48, 64)
    film = open_video(write_film(tmp_path / "a.avi", pixels, codec, bf="2"), 1)
    shades = [frame.mean() for frame in film.frames(0, len(film))]
    assert shades == pytest.approx(range(0, 200, 10), abs=8)
    assert [frame.mean() for frame in film.frames(7, 12)] == shades[7:12]


def test_a_lost_frame_does_not_shift_the_others(tmp_path):
    """What is decoded after it has its own number, so that the frames end there."""
    pytest.importorskip("av")
    pixels = np.repeat(np.arange(0, 200, 10, dtype=np.uint8), 48 * 64).reshape(-1, 48, 64)
    film = open_video(write_film(tmp_path / "a.mp4", pixels), 1)
    film.stamps = np.insert(film.stamps, 5, (film.stamps[4] + film.stamps[5]) // 2)  # one that no frame has
    assert len(list(film.frames(0, 21))) == 5


def test_label_images_without_cells_are_written_too(tmp_path):
    """The challenge wants an image for each frame, also after the last cell."""
    folder = tmp_path / "c_GT" / "TRA"
    folder.mkdir(parents=True)
    for number in range(4):
        image = np.zeros((20, 30), np.uint16)
        image[2:7, 3:9] = number < 2
        tifffile.imwrite(folder / f"man_track{number:03}.tif", image)
    (folder / "man_track.txt").write_text("1 0 1 0\n")
    processor = Processor(Cutter(8), 1, False, TrackerSettings())
    items = list(processor.read(Source("c", folder / "man_track.txt")))
    assert [(item.raw.frame.index, len(item.raw.frame)) for item in items] == [(0, 1), (1, 1), (2, 0), (3, 0)]
