"""Flags of `predict.py` for tracks: the keys of `dataset.tracker`. Importing this needs only the standard library."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from data.tracks.tracker_settings import TrackerSettings
from storage.config_keys import key

OF_SCORES = ("match_distance",)
HINTS = typing.get_type_hints(TrackerSettings)
FIELDS = [field for field in dataclasses.fields(TrackerSettings) if field.name not in OF_SCORES]


def without_effect(flags: Any, output: str | None) -> dict[str, str]:
    """See `data.processor`."""
    shows_unsure_frames = output is None or output.endswith(".slp")
    return {} if shows_unsure_frames else {"confidence_threshold": "only .slp files name unsure frames"}


PredictFlags = dataclasses.make_dataclass(
    "PredictFlags",
    [
        (
            "video",
            str | None,
            key(None, "Tracks: the video of the labels. Default: the one beside them of their name."),
        ),
        *(
            (
                field.name,
                HINTS[field.name] | None,
                key(
                    None,
                    f"Tracks: {field.metadata['help']}. Default: as in training.",
                    **{name: value for name, value in field.metadata.items() if name != "help"},
                ),
            )
            for field in FIELDS
        ),
    ],
    namespace={"__module__": __name__, "without_effect": without_effect},
)


def with_flags(settings: TrackerSettings, flags: Any) -> TrackerSettings:
    """The settings with the flags that were given in their place."""
    given = {field.name: getattr(flags, field.name) for field in FIELDS if getattr(flags, field.name) is not None}
    return dataclasses.replace(settings, **given)
