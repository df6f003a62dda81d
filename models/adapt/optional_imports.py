"""Prepare for importing peft and bitsandbytes; importing this module imports neither."""

from __future__ import annotations

import logging


def hide_kernel_warning() -> None:
    """Hide bitsandbytes' warning that an optional CPU kernel is missing.

    On CPUs with AVX512-BF16, importing bitsandbytes (which importing peft does) logs it although nothing is wrong.
    Call before either is imported.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _is_useful not in logger.filters:
        logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()
