"""Small videos with tracks: dots that move on straight lines, as CSV with a TIFF stack, or as .slp with a film."""

import csv

import numpy as np

SHADES = (90, 130, 170, 210, 250)


def positions(frames, tracks, size, seed):
    """(frames, tracks, 2) x y px: each track on a line from one random place to another."""
    generator = np.random.default_rng(seed)
    height, width = size
    ends = generator.uniform((0.15 * width, 0.15 * height), (0.85 * width, 0.85 * height), (2, tracks, 2))
    share = np.linspace(0, 1, frames)[:, None, None]
    return ends[0] + share * (ends[1] - ends[0])


def images(places, size, seed=0):
    """(frames, H, W) uint8: a square of its own shade for each track, on noise."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 30, (len(places), *size), dtype=np.uint8)
    for index, frame in enumerate(places):
        for shade, (x, y) in zip(SHADES, frame, strict=False):
            pixels[index, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = shade
    return pixels


def write_stack(folder, name, frames=12, tracks=2, size=(48, 64), seed=0):
    """NAME.csv and NAME.tif in a folder; returns the places (frames, tracks, 2)."""
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    places = positions(frames, tracks, size, seed)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["frame", "track", "x", "y"])
        for index, frame in enumerate(places):
            lines.writerows([index, f"t{track}", *map(float, place)] for track, place in enumerate(frame))
    tifffile.imwrite(folder / f"{name}.tif", images(places, size, seed), photometric="minisblack")
    return places


def write_slp(path, places, nodes=("head", "tail"), known=None):
    """A .slp file: each instance has its first node at its place and the others 3 px further right.

    Args:
        known: (frame, track) -> whether the instance has its track; None: all have.
    """
    import sleap_io

    skeleton = sleap_io.Skeleton(list(nodes))
    tracks = [sleap_io.Track(f"t{number}") for number in range(places.shape[1])]
    video = sleap_io.Video(f"{path.stem}.mp4", open_backend=False)
    labelled = []
    for index, frame in enumerate(places):
        instances = [
            sleap_io.Instance.from_numpy(
                np.array([[x + 3 * node, y] for node in range(len(nodes))]),
                skeleton=skeleton,
                track=track if known is None or known(index, number) else None,
            )
            for number, (track, (x, y)) in enumerate(zip(tracks, frame, strict=True))
            if not np.isnan(x)
        ]
        labelled.append(sleap_io.LabeledFrame(video=video, frame_idx=index, instances=instances))
    labels = sleap_io.Labels(labelled, videos=[video], skeletons=[skeleton], tracks=tracks)
    labels.save(str(path), embed=False, verbose=False)
    return path


def write_film(path, pixels, codec="libx264", **options):
    """(frames, H, W) uint8 -> a film."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pixels.shape[1:]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", **options}
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray")))
        container.mux(stream.encode())
    return path
