"""Images with labels: one class each, or any number of labels; from tables, folders, Parquet files or the hub.

A sample is one image at training size. Importing this needs nothing but the standard library, so that a configuration
can be checked in no time.
"""

from __future__ import annotations

from typing import Any

from data.images.config import Config

PROCESS_KEYS = frozenset({"cache_dir", "model_name_or_path", "trust_remote_code"})


def check(config: Config, run: Any) -> list[str]:
    """Problems that can be seen without decoding images, one line each; the tables are read."""
    from data.images.splits import read_splits
    from data.images.table import is_hub_id

    if config.path is None and config.dataset_base_dir is None and config.dataset_config_name is not None:
        return [
            f"dataset.dataset_base_dir is missing: it is the folder of LADI's {config.dataset_config_name}; "
            "dataset.path names other images"
        ]
    if config.path is not None and config.dataset_base_dir is not None:
        return [f"dataset.path: {config.path} and dataset.dataset_base_dir both name the images; keep one"]
    if config.path is None and config.dataset_base_dir is None:
        return ["dataset.path is not set; name a table of images, a folder with a subfolder per class, or a hub id"]
    if config.path is not None and is_hub_id(config.path):
        return []  # known once it is loaded
    try:
        read_splits(config, run.seed)
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def __getattr__(name: str) -> Any:
    """`Processor`, imported when asked for."""
    if name == "Processor":
        from data.images.processor import Processor

        return Processor
    raise AttributeError(name)


def build(config: Config, run: Any) -> Any:
    """The `Bundle` of the configured images; raises ValueError if they cannot be used."""
    from data.images.build_bundle import assemble

    return assemble(config, run)
