"""Small LeRobot data sets, v3.0 and v2.1, written with pyarrow and PyAV alone; independent of Keel's own writer.

Shapes: T steps of an episode, H and W of a frame.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIZE = (48, 64)
LENGTHS = (12, 7, 9)
TASKS = ["pick up the cube", "open the drawer"]
CAMERAS = ("top", "wrist")


def level(episode: int, step: int, camera: int) -> int:
    """The grey level of a frame: no two frames of a camera have the same."""
    return 20 + 70 * episode + 5 * step + 3 * camera


def frame(episode: int, step: int, camera: int, size=SIZE) -> np.ndarray:
    """(H, W, 3) uint8: one grey, and a red corner, which tells RGB from BGR and shows what is up."""
    image = np.full((*size, 3), level(episode, step, camera), np.uint8)
    image[: size[0] // 2, : size[1] // 2] = (200, 20, 20)
    return image


def write_video(file: Path, frames, fps=30, pts=None, codec="libx264") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, Fraction(fps), options={"g": "2", "crf": "8"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        for number, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = number if pts is None else pts[number]
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def values(lengths, seed=0) -> list[dict[str, np.ndarray]]:
    """The signals of each episode: state (T, 5), effort (T, 2), action (T, 4), all float32."""
    generator = np.random.default_rng(seed)
    dims = {"observation.state": 5, "observation.effort": 2, "action": 4}
    return [
        {name: generator.normal(size=(length, dim)).astype(np.float32) for name, dim in dims.items()}
        for length in lengths
    ]


def columns_of(episode, arrays, fps, first, texts) -> dict:
    length = len(arrays["action"])
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        for name, array in arrays.items()
    }
    columns |= {
        "timestamp": pa.array((np.arange(length) / fps).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(first + np.arange(length)),
        "task_index": pa.array(np.full(length, episode % 2)),
    }
    if texts:
        columns["subtask"] = pa.array(["reach"] * 3 + ["grasp"] * (length - 3))
        columns["reasoning"] = pa.array([f"reason {episode} {step}" for step in range(length)])
    return columns


def features_of(cameras, dtype, texts, size=SIZE) -> dict:
    features = {
        "observation.state": {"dtype": "float32", "shape": [5], "names": None},
        "observation.effort": {"dtype": "float32", "shape": [2], "names": None},
        "action": {"dtype": "float32", "shape": [4], "names": None},
    }
    for camera in cameras:
        names = ["height", "width", "channels"]
        features[f"observation.images.{camera}"] = {"dtype": dtype, "shape": [*size, 3], "names": names}
    for name in ("subtask", "reasoning") if texts else ():
        features[name] = {"dtype": "string", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def write_info(folder, version, lengths, fps, features, **paths) -> None:
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": features,
        **paths,
    }
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps(info))


def write_v3(
    folder: Path, lengths=LENGTHS, fps=30, cameras=CAMERAS, dtype="video", texts=False, seed=0, size=SIZE, per_file=2
) -> list[dict[str, np.ndarray]]:
    """Write a v3.0 data set with `per_file` episodes in a file; returns the signals of its episodes."""
    signals = values(lengths, seed)
    starts = np.cumsum([0, *lengths]).tolist()
    rows = []
    for file in range(-(-len(lengths) // per_file)):
        members = range(file * per_file, min(len(lengths), (file + 1) * per_file))
        tables = []
        for episode in members:
            columns = columns_of(episode, signals[episode], fps, starts[episode], texts)
            for number, camera in enumerate(cameras if dtype == "image" else ()):
                images = [frame(episode, step, number, size) for step in range(lengths[episode])]
                columns[f"observation.images.{camera}"] = pa.array([{"bytes": png(i), "path": None} for i in images])
            tables.append(pa.table(columns))
            row = {
                "episode_index": episode,
                "tasks": [TASKS[episode % 2]],
                "length": lengths[episode],
                "data/chunk_index": 0,
                "data/file_index": file,
                "dataset_from_index": starts[episode],
                "dataset_to_index": starts[episode + 1],
                "stats/action/mean": [0.0],
            }
            for camera in cameras if dtype == "video" else ():
                key = f"videos/observation.images.{camera}"
                first = (starts[episode] - starts[members[0]]) / fps
                row |= {f"{key}/chunk_index": 0, f"{key}/file_index": file, f"{key}/from_timestamp": first}
                row[f"{key}/to_timestamp"] = first + lengths[episode] / fps
            rows.append(row)
        path = folder / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        for number, camera in enumerate(cameras if dtype == "video" else ()):
            images = [frame(episode, step, number, size) for episode in members for step in range(lengths[episode])]
            write_video(folder / f"videos/observation.images.{camera}/chunk-000/file-{file:03d}.mp4", images, fps)
    write_info(
        folder,
        "v3.0",
        lengths,
        fps,
        features_of(cameras, dtype, texts, size),
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": TASKS})
    pq.write_table(tasks, folder / "meta/tasks.parquet")
    return signals


def write_v21(folder: Path, lengths=LENGTHS, fps=30, cameras=CAMERAS, seed=0) -> list[dict[str, np.ndarray]]:
    """Write a v2.1 data set: a Parquet file and a video of each camera for every episode."""
    signals = values(lengths, seed)
    starts = np.cumsum([0, *lengths]).tolist()
    for episode, length in enumerate(lengths):
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns_of(episode, signals[episode], fps, starts[episode], False)), path)
        for number, camera in enumerate(cameras):
            images = [frame(episode, step, number) for step in range(length)]
            name = f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"
            write_video(folder / name, images, fps)
    write_info(
        folder,
        "v2.1",
        lengths,
        fps,
        features_of(cameras, "video", False),
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    episodes = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(lengths)]
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(TASKS)]
    for name, lines in (("episodes", episodes), ("tasks", tasks)):
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return signals
