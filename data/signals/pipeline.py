"""Filter and resample a stretch of a recording, a block at a time: the same numbers as for all of it at once.

Shapes: C channels, n samples of a block. Blocks are (C, n) float64, NaN where a value is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from scipy import signal

ORDER, NOTCH_QUALITY = 4, 30
FILTER_ZEROS = 10  # of resample_poly's filter: its half length, in samples of the lower rate
LARGEST_DENOMINATOR = 10_000  # of the ratio of two rates; the error of the new rate is below 1 in 10,000

Blocks = Iterator[np.ndarray]


def sections_of(
    rate: float | None, highpass: float | None, lowpass: float | None, notch: list[float] | None
) -> np.ndarray | None:
    """Second-order sections (S, 6) of all filters, or None.

    The filters are causal: a zero-phase filter would put a part of the next values into the inputs that predict them.

    Raises:
        ValueError: the rate is not known, or a frequency is at or above half of it.
    """
    wanted = [(highpass, "highpass"), (lowpass, "lowpass"), *((hertz, "notch") for hertz in notch or ())]
    wanted = [(hertz, kind) for hertz, kind in wanted if hertz is not None]
    if not wanted:
        return None
    sections = []
    for hertz, kind in wanted:
        if rate is None or hertz >= rate / 2:
            reason = "needs dataset.sampling_rate" if rate is None else f"must be below {rate / 2:g} Hz, half the rate"
            raise ValueError(f"dataset.{kind}: {hertz:g} {reason}")
        if kind == "notch":
            sections.append(signal.tf2sos(*signal.iirnotch(hertz, NOTCH_QUALITY, fs=rate)))
        else:
            sections.append(signal.butter(ORDER, hertz, kind, fs=rate, output="sos"))
    return np.concatenate(sections)


def ratio_of(rate: float, resample: float) -> tuple[int, int]:
    """(up, down): the new rate is `rate * up / down`."""
    ratio = Fraction(resample / rate).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator, ratio.denominator


def processed(blocks: Blocks, sections: np.ndarray | None, up: int, down: int) -> Blocks:
    """The blocks filtered and resampled; a value is missing where the nearest one was.

    Missing values are bridged by the last one before them, so that a filter does not spread them.
    """
    if sections is None and up == down:
        yield from blocks
        return
    masks: list[np.ndarray] = []  # of input blocks whose output is still to come
    filled = bridged(blocks, masks)
    filled = filled if sections is None else filtered(filled, sections)
    if up == down:
        for block in filled:
            block[masks.pop(0)] = np.nan
            yield block
        return
    first, done, mask = 0, 0, np.empty((0, 0), bool)
    for block in resampled(filled, up, down):
        mask = np.concatenate([mask, *masks], 1) if mask.size else np.concatenate(masks, 1) if masks else mask
        masks.clear()
        nearest = np.rint(np.arange(done, done + block.shape[1]) * down / up).astype(np.int64) - first
        block[mask[:, np.minimum(nearest, mask.shape[1] - 1)]] = np.nan
        yield block
        used = max(0, int(nearest[-1]) - 1) if len(nearest) else 0
        mask, first, done = mask[:, used:], first + used, done + block.shape[1]


def bridged(blocks: Blocks, masks: list[np.ndarray]) -> Blocks:
    """Fill missing values with the last one before them, at the start with 0; `masks` gets where they were."""
    last = None
    for block in blocks:
        mask = np.isnan(block)
        masks.append(mask)
        if mask.any():
            if last is None:
                last = np.zeros(len(block))
            place = np.maximum.accumulate(np.where(mask, -1, np.arange(block.shape[1])), axis=1)
            block = np.where(place < 0, last[:, None], np.take_along_axis(block, np.maximum(place, 0), 1))
        last = block[:, -1]
        yield block


def filtered(blocks: Blocks, sections: np.ndarray) -> Blocks:
    """Filter with the state at rest at each channel's first value."""
    state = None
    for block in blocks:
        if state is None:
            state = signal.sosfilt_zi(sections)[:, None, :] * block[None, :, :1]
        block, state = signal.sosfilt(sections, block, axis=1, zi=state)
        yield block


def resampled(blocks: Blocks, up: int, down: int) -> Blocks:
    """Polyphase resampling with anti-aliasing; n samples become ceil(n * up / down).

    Equal to `scipy.signal.resample_poly` of the stretch with its first and last value repeated before and after it.
    """
    reach = -(-FILTER_ZEROS * max(up, down) // (up * down)) * down  # input samples on either side, whole periods
    margin = reach * up // down
    buffer, total, done = None, 0, 0
    for block in blocks:
        buffer = np.repeat(block[:, :1], reach, 1) if buffer is None else buffer
        buffer, total = np.concatenate([buffer, block], 1), total + block.shape[1]
        ready = (buffer.shape[1] - 2 * reach) // down * down
        if ready > 0:
            output = signal.resample_poly(buffer[:, : ready + 2 * reach], up, down, axis=1)
            yield output[:, margin : margin + ready * up // down]
            buffer, done = buffer[:, ready:], done + ready * up // down
    if buffer is not None:
        padded = np.concatenate([buffer, np.repeat(buffer[:, -1:], reach + down, 1)], 1)
        output = signal.resample_poly(padded, up, down, axis=1)
        yield output[:, margin : margin + -(-total * up // down) - done]
