"""What `resume_context` and `resume_token_corruption` change in the network of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loader.resolve.run_config import RunConfig
from loader.resume.find_checkpoint import ResumePoint
from loader.sources.config_tree import node_of
from storage import safe_read


def resized_context(run: RunConfig, network: Any, dims: Mapping[str, int], point: ResumePoint) -> list[str]:
    """Let a network that was built for the data's windows read longer ones than the checkpoint's; returns lines.

    Raises:
        ValueError: the windows are longer without `resume_context`, or do not fit it.
    """
    wanted, place, length = run.process.resume_context, run.place("resume_context"), dims.get("context")
    if not hasattr(network, "resize_context"):
        if wanted is not None:
            raise ValueError(f"`resume_context`{place}: model {run.model.name} cannot be resized; leave it out")
        return []
    shape, before = [dims["channels"], length], safe_read.read_json(point.folder / "config.json")["context"]
    if wanted is None:
        if before != length:
            raise ValueError(
                f"{point.folder.name} reads windows of {before} time steps, the data has {length}; set resume_context: "
                f"{{input_shape: {shape}}}, or dataset.window back"
            )
        return []
    if wanted.input_shape not in (None, shape):
        raise ValueError(
            f"`resume_context.input_shape: {wanted.input_shape}`{place}: the data has {shape}, channels and "
            "time steps; change it or dataset.window"
        )
    network.config.context = before
    try:
        network.resize_context(length, wanted.rope_theta, wanted.max_position_embeddings)
    except ValueError as error:
        raise ValueError(f"`resume_context`{place}: {error}") from None
    rotation = f", rope_theta {wanted.rope_theta:g}" if wanted.rope_theta else ""
    return [f"resume_context: windows of {length} time steps, {point.folder.name} had {before}{rotation}"]


def kept_corruption(run: RunConfig, network: Any, point: ResumePoint) -> list[str]:
    """Let the token corruption be that of the checkpoint, or as `resume_token_corruption` says; returns lines.

    Raises:
        ValueError: the network has none, or the settings are wrong.
    """
    wanted, place = run.process.resume_token_corruption, run.place("resume_token_corruption")
    if not hasattr(network, "set_token_corruption"):
        if wanted is not None:
            raise ValueError(f"`resume_token_corruption`{place}: model {run.model.name} has none; leave it out")
        return []
    before, configured = (settings.model.config.token_corruption for settings in (point.run, run))
    before, configured = before and asdict(before), configured and asdict(configured)
    values = wanted if isinstance(wanted, dict) else {None: before, True: configured, False: None}[wanted]
    try:
        network.set_token_corruption(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`resume_token_corruption`{place}: {error}") from None
    now, model = network.config.token_corruption, run.tree.value["model"].value
    model["token_corruption"] = node_of(now, model["token_corruption"].origin)  # for run.yaml, and the next resume
    if wanted is None and configured != before:
        return [
            f"model.token_corruption: {configured or 'none'} is not applied on resume, {before or 'none'} stays; "
            "resume_token_corruption: true takes it"
        ]
    return [] if now == before else [f"token corruption from here on: {now or 'none'}, was {before or 'none'}"]
