"""Label formats and videos of tracks, against files written by hand and by the formats' own libraries."""

import numpy as np
import pytest
from track_files import images, positions, write_film, write_slp, write_stack

from data.tracks.config import Directory, Split
from data.tracks.crops import Cutter
from data.tracks.find import Source, find_sources, pair, read_labels, sequence_name
from data.tracks.open_recording import open_recording
from data.tracks.sequence import UNKNOWN
from data.tracks.video import eight_bit, frame_number, open_video

tifffile = pytest.importorskip("tifffile")


def rows_of(sequence):
    """{(frame, track name): (x, y) of the first node}, None for the name of an instance without a track"""
    names = [None if number == UNKNOWN else sequence.tracks[number] for number in sequence.identities]
    points = sequence.points[:, 0].tolist()
    return {
        key: tuple(point) for key, point in zip(zip(sequence.frames.tolist(), names, strict=True), points, strict=True)
    }


@pytest.fixture
def tracking(shared):
    folder = shared / "data" / "tracking"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


# ---- labels ----


@pytest.mark.slow
def test_slp(tmp_path):
    """Frames without instances, an instance without a track, a track that starts late, nodes that are not visible."""
    pytest.importorskip("sleap_io")
    places = positions(4, 2, (40, 60), 0)
    places[1] = np.nan  # no instance in frame 1
    places[0, 1] = np.nan  # the second track starts late
    sequence = read_labels(write_slp(tmp_path / "a.slp", places, known=lambda frame, track: (frame, track) != (3, 0)))
    rows = rows_of(sequence)
    assert set(rows) == {(0, "t0"), (2, "t0"), (2, "t1"), (3, None), (3, "t1")}
    assert rows[2, "t1"] == pytest.approx(tuple(places[2, 1]), abs=1e-3)
    assert (
        sequence.nodes == ("head", "tail")
        and sequence.points.shape == (5, 2, 2)
        and (sequence.start, sequence.stop) == (0, 4)
    )
    assert np.allclose(sequence.points[:, 1] - sequence.points[:, 0], (3, 0))


def test_a_predicted_instance_counts_until_one_replaces_it(tmp_path):
    sleap_io = pytest.importorskip("sleap_io")
    path = write_slp(tmp_path / "a.slp", positions(1, 1, (40, 60), 0), nodes=("head",))
    labels = sleap_io.load_slp(str(path), open_videos=False)
    options = {"skeleton": labels.skeletons[0], "score": 0.25}
    corrected = sleap_io.PredictedInstance.from_numpy(np.array([[1.0, 2.0]]), track=labels.tracks[0], **options)
    alone = sleap_io.PredictedInstance.from_numpy(np.array([[5.0, 6.0]]), **options)
    labels[0].instances[0].from_predicted = corrected
    labels[0].instances += [corrected, alone]
    labels.save(str(tmp_path / "b.slp"), embed=False, verbose=False)
    sequence = read_labels(tmp_path / "b.slp")
    assert sorted(sequence.scores.tolist()) == [0.25, 1.0] and (5.0, 6.0) in rows_of(sequence).values()


def write_masks(folder, frames, table=None):
    folder.mkdir(parents=True)
    for number, image in frames.items():
        tifffile.imwrite(folder / f"man_track{number:03}.tif", image)
    if table is not None:
        (folder / "man_track.txt").write_text(table)
    return folder


def blocks(**places):
    """(20, 30) uint16 with 3×3 squares: label -> (y, x) of their upper left corner."""
    image = np.zeros((20, 30), np.uint16)
    for label, (y, x) in places.items():
        image[y : y + 3, x : x + 3] = int(label[1:])
    return image


def test_masks_with_labels_above_255(tmp_path):
    frames = {0: blocks(_300=(2, 4)), 1: blocks(_300=(3, 4), _44=(10, 20)), 2: blocks(_44=(10, 21))}
    folder = write_masks(tmp_path / "01_GT" / "TRA", frames, "300 0 1 0\n44 1 2 0\n")
    sequence = read_labels(folder)
    assert rows_of(sequence) == {(0, "300"): (5, 3), (1, "300"): (5, 4), (1, "44"): (21, 11), (2, "44"): (22, 11)}
    assert sequence.boxes[0].tolist() == [2, 4, 5, 7] and sequence.size == (20, 30)
    assert sorted(sequence.mask_labels.tolist()) == [44, 44, 300, 300] and sequence.notes == ()
    assert sequence_name(folder) == "01"


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ("7 0 1 0\n7 1 2 0\n", "man_track.txt:2"),  # one frame in two lines of a label
        ("7 0 1 0\n", "man_track.txt:1"),  # pixels in frame 2, too
        ("7 0 2\n", "man_track.txt:1"),
        ("8 0 2 0\n", "man_track.txt:1"),
    ],
)
def test_a_table_that_contradicts_the_label_images(tmp_path, table, place):
    folder = write_masks(tmp_path / "TRA", {number: blocks(_7=(2, 4)) for number in range(3)}, table)
    with pytest.raises(ValueError, match=place):
        read_labels(folder)


def test_a_table_with_gaps_is_read_by_its_label_images(tmp_path):
    frames = {0: blocks(_7=(2, 4)), 1: blocks(), 2: blocks(_7=(2, 6))}
    sequence = read_labels(write_masks(tmp_path / "TRA", frames, "7 0 0 0\n7 2 2 0\n"))
    assert rows_of(sequence) == {(0, "7"): (5, 3), (2, "7"): (7, 3)} and len(sequence.notes) == 1


def test_label_images_of_a_part_of_the_video(tmp_path):
    """Label image 12 belongs to image 12, the third one."""
    (tmp_path / "01").mkdir()
    for number in range(10, 16):
        tifffile.imwrite(tmp_path / "01" / f"t{number:03}.tif", np.full((20, 30), number, np.uint8))
    frames = {number: blocks(_7=(2, number)) for number in range(12, 15)}
    labels = write_masks(tmp_path / "01_GT" / "TRA", frames, "7 12 14 0\n")
    recording = open_recording(Source(labels, tmp_path / "01"), Cutter(4), 1)
    assert [(frame.index, int(frame.crops.max()), len(frame)) for frame in recording.labelled()] == [
        (2, 12, 1), (3, 13, 1), (4, 14, 1)
    ]  # fmt: skip
    assert {frame: frame_number(path) for frame, path in recording.sequence.masks.items()} == {2: 12, 3: 13, 4: 14}


def test_the_challenges_cells(tracking):
    sequence = read_labels(tracking / "ctc" / "test_0_GT" / "TRA")
    assert (len(sequence), len(sequence.tracks), sequence.stop) == (224, 23, 11)
    image = tifffile.imread(tracking / "ctc" / "test_0_GT" / "TRA" / "frame_0003.tif")
    rows = np.flatnonzero(sequence.frames == 3)
    assert sorted(sequence.mask_labels[rows].tolist()) == sorted(set(np.unique(image)) - {0})
    y, x = np.nonzero(image == sequence.mask_labels[rows[0]])
    assert np.allclose(sequence.points[rows[0], 0], (x.mean(), y.mean()))
    assert sequence.boxes[rows[0]].tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RECEPTOR", "MICROTUBULE"])
def test_isbi(tracking, name):
    folder = tracking / "isbi" / f"{name.lower()}s"
    path = folder / f"{name}_snr_7_density_low.xml"
    sequence = read_labels(path)
    text = path.read_text()
    assert (len(sequence), len(sequence.tracks)) == (text.count("<detection "), text.count("<particle>"))
    assert sequence.stop == 100 and len(pair(path)) == 9


TRACKMATE = """<TrackMate version="7"><Model><AllSpots>
<SpotsInFrame frame="0"><Spot ID="1" FRAME="0" POSITION_X="2" POSITION_Y="4" /></SpotsInFrame>
<SpotsInFrame frame="1"><Spot ID="2" FRAME="1" POSITION_X="3" POSITION_Y="4" /></SpotsInFrame>
<SpotsInFrame frame="2"><Spot ID="3" FRAME="2" POSITION_X="4" POSITION_Y="5" />
<Spot ID="4" FRAME="2" POSITION_X="4" POSITION_Y="3" /><Spot ID="9" FRAME="2" POSITION_X="1" POSITION_Y="1" />
</SpotsInFrame></AllSpots>
<AllTracks><Track TRACK_ID="0"><Edge SPOT_SOURCE_ID="2" SPOT_TARGET_ID="1" />
<Edge SPOT_SOURCE_ID="2" SPOT_TARGET_ID="3" /><Edge SPOT_SOURCE_ID="2" SPOT_TARGET_ID="4" /></Track>
<Track TRACK_ID="1"><Edge SPOT_SOURCE_ID="1" SPOT_TARGET_ID="9" /></Track></AllTracks>
<FilteredTracks><TrackID TRACK_ID="0" /></FilteredTracks></Model>
<Settings><ImageData width="100" height="80" nframes="5" pixelwidth="0.5" pixelheight="0.25" /></Settings>
</TrackMate>"""


def test_trackmate(tmp_path):
    """Coordinates in pixels; a track that divides becomes three; filtered tracks and single spots have no identity."""
    (tmp_path / "a.xml").write_text(TRACKMATE)
    sequence = read_labels(tmp_path / "a.xml")
    by_place = {
        tuple(point): number for point, number in zip(sequence.points[:, 0].tolist(), sequence.identities, strict=True)
    }
    assert by_place[4, 16] == by_place[6, 16] != UNKNOWN  # edges need not be in the order of time
    assert len({by_place[4, 16], by_place[8, 20], by_place[8, 12]}) == 3 and by_place[2, 4] == UNKNOWN
    assert sequence.size == (80, 100)


def test_icy_and_files_with_entities(tmp_path):
    track = '<track id="{}"><detection t="0" x="1.5" y="2" /><detection t="3" x="2.5" y="4" /></track>'
    text = f"<root><trackgroup>{track.format(5)}{track.format(8)}</trackgroup></root>"
    (tmp_path / "a.xml").write_text(text)
    assert (read_labels(tmp_path / "a.xml").identities == [0, 1, 0, 1]).all()
    declaration = f'<!DOCTYPE root [<!ENTITY secret SYSTEM "file://{tmp_path}/a.xml">]>'
    for wrong in (
        declaration + text,
        "<root>",
        "<root/>",
        text.replace('t="3"', 't="late"'),
        text.replace('y="4"', ""),
    ):
        (tmp_path / "b.xml").write_text(wrong)
        with pytest.raises(ValueError, match="b.xml"):
            read_labels(tmp_path / "b.xml")


def test_csv(tmp_path):
    """Columns in any order and case; TrackMate's three lines below the header; a track may be missing."""
    units = "Label,Y,X,Frame,Track ID\nLabel,Y,X,Frame,ID\n,(micron),(micron),,\n"
    (tmp_path / "a.csv").write_text(f"LABEL,POSITION_Y,POSITION_X,FRAME,TRACK_ID\n{units}s,2,1,3,7\ns,4,3,0,\n")
    assert rows_of(read_labels(tmp_path / "a.csv")) == {(0, None): (3, 4), (3, "7"): (1, 2)}
    (tmp_path / "b.csv").write_text("frame,x,y,score\n0,1,2,.5\n")
    assert read_labels(tmp_path / "b.csv").scores.tolist() == [0.5]
    (tmp_path / "c.csv").write_text("frame,x,y\n0,1,2\n1,left,2\n")
    with pytest.raises(ValueError, match=r"c.csv:3"):
        read_labels(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("frame,x\n0,1\n")
    with pytest.raises(ValueError, match=r"d.csv:1.*position_y"):
        read_labels(tmp_path / "d.csv")
    (tmp_path / "e.csv").write_text("frame,x,y\n")
    with pytest.raises(ValueError, match=r"e.csv"):
        read_labels(tmp_path / "e.csv")


@pytest.mark.slow
def test_motchallenge(tracking, tmp_path):
    """Against motmetrics' own reader."""
    motmetrics = pytest.importorskip("motmetrics")
    for name in ("gt", "test"):
        path = tracking / "motchallenge" / "TUD-Campus" / f"{name}.txt"
        table = motmetrics.io.loadtxt(path, fmt="mot15-2D").reset_index()
        sequence = read_labels(path)
        assert (sequence.frames + 1).tolist() == sorted(table.FrameId)
        names = [int(sequence.tracks[number]) for number in sequence.identities]
        boxes = dict(zip(zip(sequence.frames + 1, names, strict=True), sequence.boxes, strict=True))
        for row in table.itertuples():
            expected = [row.Y, row.X, row.Y + row.Height, row.X + row.Width]
            assert np.allclose(boxes[row.FrameId, row.Id], expected, atol=1e-3)
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nimWidth=640\nimHeight=480\nseqLength=9\n")
    (tmp_path / "gt.txt").write_text("1,-1,1,1,2,2,1\n2,3,1,1,2,2,0\n")
    sequence = read_labels(tmp_path / "gt.txt")
    assert sequence.size == (480, 640)
    assert rows_of(sequence) == {(0, None): (1, 1)}  # confidence 0: does not count
    (tmp_path / "det.txt").write_text("1,-1,1,1\n")
    with pytest.raises(ValueError, match="det.txt:1"):
        read_labels(tmp_path / "det.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "frame,x,y\ninf,1,2\n"),
        ("a.csv", "frame,x,y\n0.04,1,2\n"),  # seconds
        ("a.csv", "frame,x,y\n-1,1,2\n"),
        ("a.csv", "frame,x,y\n1e300,1,2\n"),
        ("a.csv", "frame,x,y\n0,nan,2\n1,inf,3\n"),  # no place at all
        ("a.csv", 'frame,x,y,track\n0,1,2,"' + "a" * 200_000),
        ("a.txt", "0,1,2,2,3,3\n"),  # frames count from 1
        ("a.txt", "1,inf,2,2,3,3\n"),
        ("a.txt", "1,1,2,2,nan,3\n"),
        ("a.txt", "1,1,2,2,-3,3\n"),
        ("a.xml", '<r><particle><detection t="inf" x="1" y="2"/></particle></r>'),
        ("a.xml", '<TrackMate><Spot ID="1" FRAME="0" POSITION_X="1"/></TrackMate>'),
        ("a.xml", "<TrackMate/>"),
    ],
)
def test_values_that_no_video_has(tmp_path, name, text):
    """One line that names the file."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name) as caught:
        read_labels(tmp_path / name)
    assert "\n" not in str(caught.value) and str(caught.value).count(name) == 1


def test_instances_without_a_place_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"frame,x,y,track\n0,1,2,\xb5\n1,nan,2,b\n2,3,inf,b\n3,5,6,b\n")
    sequence = read_labels(tmp_path / "a.csv")
    assert sequence.frames.tolist() == [0, 3] and sequence.points[:, 0].tolist() == [[1, 2], [5, 6]]
    assert sequence.tracks[sequence.identities[1]] == "b" and sequence.size is None
    assert sequence.extent() == (7, 6)


def test_two_instances_of_a_track_in_one_frame(tmp_path):
    (tmp_path / "a.csv").write_text("frame,x,y,track\n0,1,2,a\n3,1,2,b\n3,4,5,b\n3,7,8,\n3,9,9,\n")
    with pytest.raises(ValueError, match=r"a.csv.* b .*frame 3"):
        read_labels(tmp_path / "a.csv").check_identities()


# ---- videos ----


@pytest.mark.slow
def test_a_film_is_the_same_from_any_frame_on(tmp_path):
    """Frames behind a seek; not square; gray and colour."""
    pytest.importorskip("av")
    pixels = images(positions(60, 2, (48, 64), 0), (48, 64))
    path = write_film(tmp_path / "a.mp4", pixels)
    video = open_video(path, 1)
    assert (len(video), video.size) == (60, (48, 64))
    whole = list(video.frames(0, 60))
    assert [frame.shape for frame in whole] == [(48, 64, 1)] * 60
    assert np.abs(np.stack(whole)[..., 0].astype(int) - pixels).mean() < 6  # the codec loses a little
    for start, stop in ((0, 1), (13, 20), (59, 60)):
        assert np.array_equal(np.stack(list(video.frames(start, stop))), np.stack(whole[start:stop]))
    assert next(open_video(path, 3).frames(5, 6)).shape == (48, 64, 3)


@pytest.mark.slow
def test_films_of_the_flies(tracking):
    pytest.importorskip("av")
    cv2 = pytest.importorskip("cv2")
    path = tracking / "two_flies.mp4"
    video, other = open_video(path, 3), cv2.VideoCapture(str(path))
    assert len(video) == int(other.get(cv2.CAP_PROP_FRAME_COUNT)) == 128
    expected = [other.read()[1][..., ::-1] for _ in range(40)][38:]
    for ours, theirs in zip(video.frames(38, 40), expected, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_image_files_and_stacks(tmp_path):
    pixels = images(positions(12, 1, (20, 30), 0), (20, 30))
    tifffile.imwrite(tmp_path / "s.tif", pixels)
    for number, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"s_t{number}_z0.tif", image)  # 10 comes after 9, not after 1
    files = pair(tmp_path / "s.csv", ".tif")
    assert files == tmp_path / "s.tif"
    for video in (open_video(files, 1), open_video([path for path in tmp_path.iterdir() if "_t" in path.name], 1)):
        assert (len(video), video.size) == (12, (20, 30))
        assert np.array_equal(np.stack(list(video.frames(3, 12)))[..., 0], pixels[3:])


def test_compressed_images(tmp_path):
    """LZW, which OpenCV and ImageJ write, as single images and as a stack; a damaged file."""
    cv2 = pytest.importorskip("cv2")
    pixels = images(positions(4, 1, (20, 30), 0), (20, 30)).astype(np.uint16) * 300
    cv2.imwritemulti(str(tmp_path / "s.tif"), list(pixels))
    for number, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"f_{number}.tif"), image)
    (tmp_path / "f_4.tif").write_bytes(b"II*\0damaged" * 20)
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert file.pages[0].compression == 5 and len(file.pages) == 4
    files = [path for path in tmp_path.iterdir() if path.name.startswith("f_")]
    stack, single = open_video(tmp_path / "s.tif", 1), open_video(files, 1)
    assert len(stack) == 4 and np.array_equal([*stack.frames(1, 4)], [*single.frames(1, 4)])
    with pytest.raises(ValueError, match=r"f_4.tif"):
        next(single.frames(4, 5))


@pytest.mark.parametrize(("axes", "frames"), [("TYX", 6), ("ZYX", 6), ("TCYX", None), ("TZYX", None), ("TYXS", 2)])
def test_axes_of_stacks(tmp_path, axes, frames):
    """Time may be stored as slices; with channels besides, a page is no frame."""
    shape = {"T": 2, "C": 3, "Z": 3, "Y": 20, "X": 30, "S": 3}
    sizes = [6 if frames == 6 and axis in "TZ" else shape[axis] for axis in axes]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(sizes, np.uint8), imagej=True, metadata={"axes": axes})
    if frames is None:
        with pytest.raises(ValueError, match="a.tif"):
            open_video(tmp_path / "a.tif", 1)
    else:
        assert len(open_video(tmp_path / "a.tif", 1)) == frames


def test_eight_bit():
    wide = np.array([[100, 1100]], np.uint16)
    assert eight_bit(wide, 1)[..., 0].tolist() == [[0, 255]]
    colour = np.array([[[255, 0, 0], [10, 10, 10]]], np.uint8)
    assert eight_bit(colour, 1)[..., 0].tolist() == [[76, 10]]
    assert eight_bit(np.array([[7]], np.uint8), 3).tolist() == [[[7, 7, 7]]]
    assert eight_bit(np.array([[np.nan, 2.0, 4.0]], np.float32), 1)[..., 0].tolist() == [[0, 0, 255]]


def test_frame_number(tmp_path):
    numbers = {"frame_0003": 3, "man_track012": 12, "MICROTUBULE_snr_7_t008_z0": 8, "still": 0}
    assert {name: frame_number(tmp_path / f"{name}.tif") for name in numbers} == numbers


# ---- pairs ----


def test_labels_and_videos_are_paired_by_name(tmp_path):
    """Not by the order in which the file system has them."""
    for name in ("b", "a", "a2"):
        write_stack(tmp_path, name)
    for suffix in (None, ".tif", "tif"):
        sources = find_sources(Split(dir=Directory(str(tmp_path), vid_suffix=suffix)), "dataset.train_dataset", True)
        assert [(source.labels.name, source.video.name) for source in sources] == [
            (f"{name}.csv", f"{name}.tif") for name in ("a", "a2", "b")
        ]
    listed = Split(
        slp_files=[f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], video_files=[f"{tmp_path}/b.tif", f"{tmp_path}/a.tif"]
    )
    assert [source.video.name for source in find_sources(listed, "dataset.train_dataset", True)] == ["a.tif", "b.tif"]
    other = Split(
        slp_files=[f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], video_files=[f"{tmp_path}/b.tif", f"{tmp_path}/a2.tif"]
    )
    assert [source.video.name for source in find_sources(other, "dataset.train_dataset", True)] == ["b.tif", "a2.tif"]


def test_layouts_of_the_challenges(tracking):
    split = Split(dir=Directory(str(tracking / "ctc")))
    (source,) = find_sources(split, "dataset.train_dataset", True)
    assert (source.name, source.video) == ("test_0", tracking / "ctc" / "test_0")
    assert pair(source.labels) == source.video  # beside the labels' own folder
    split = Split(dir=Directory(str(tracking / "motchallenge")))
    assert [source.name for source in find_sources(split, "s", False)] == ["TUD-Campus", "TUD-Stadtmitte"]
    (source,) = find_sources(Split(dir=Directory(str(tracking / "isbi" / "receptors"), ".xml", ".tif")), "s", True)
    assert len(source.video) == 9
