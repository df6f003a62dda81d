"""Clips of dots that move on straight lines, with a small tracking transformer; evaluation sets are whole videos."""

from track_files import write_stack

MODEL, DATA = "tracker", "tracks"
OUTPUT = "tracks.csv"
NETWORK = "{name: tracker, d_model: 16, dropout: 0, dropout_attn_head: 0, encoder_cfg: {model_name: conv, widths: [4]}}"


def words(folder):
    write_stack(folder / "videos", "a", frames=85, tracks=2)
    (folder / "task.yaml").write_text(
        f"dataset: {{name: tracks, train_dataset: {{dir: {{path: {folder / 'videos'}}}, crop_size: 8, "
        f"clip_length: 2}}, val_frames: 5, channels: 1, tracker: {{window_size: 2}}}}\nmodel: {NETWORK}\n"
        "loss: {name: association}\n"
    )
    (folder / "training.yaml").write_text(f"task_name: {folder / 'task.yaml'}\n")
    return ["--training_config", str(folder / "training.yaml")]


def inputs(folder):
    write_stack(folder / "new", "b", frames=7, tracks=3, seed=1)
    return folder / "new" / "b.csv"
