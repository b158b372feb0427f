"""Synthesis of the digit scenes: real handwritten digits painted over photographs.

Everything here is a function of its arguments, and gives the same bits on every machine:
the random numbers come from ``RandomState``, whose stream NumPy has frozen; the geometry uses
only IEEE additions, multiplications and divisions, element by element (no libm, no BLAS, no
resampling of an imaging library); colours are integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["DigitScene", "generate_scenes", "render_ink"]

SIDE_RANGE = (144, 176)  # pixels, both ends included, as in all ranges below
DIGITS_PER_IMAGE = (2, 6)
HEIGHT_RANGE = (16, 56)  # pixels, of the upscaled 8-row source before it is rotated
# Rotations are 2*atan(k / 64): their sine and cosine are then rational. 11 is 19.5 degrees.
MAX_TILT = 11
MAX_HIDDEN = 0.6  # share of a digit that later ones may cover
INK_LEVEL = 6.5  # of 16 grey levels: where paper ends and ink begins
MIN_LUMA_CONTRAST = 75  # of 255, between the ink and the mean of what lies around it
MIN_DISTANCE = 240  # of 765, summed over RGB: from that mean, and between inks that touch
NEAR_PERCENT = 12  # of the digits are put near another one, besides those that chance puts there
PLACING_TRIES = 100


@dataclass(frozen=True)
class DigitScene:
    """One image and its instances.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB.
        labels: the digit, 0..9, of each of the n instances, in the order of painting.
        sources: which image of the source dataset each instance is.
        masks: ``(n, H, W)`` bool, the visible pixels of each instance; they never overlap.
    """

    image: np.ndarray
    labels: list[int]
    sources: list[int]
    masks: np.ndarray


def _draw(rng: np.random.RandomState, low: int, high: int) -> int:
    """A uniform integer in [low, high]. The type is fixed: the default differs by platform."""
    return int(rng.randint(low, high + 1, dtype=np.int64))


def _luma(rgb: np.ndarray) -> int:
    """Luminance, 0..255, of an integer RGB colour ``(3,)``."""
    return int(299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2]) // 1000


def _cubic_weights(t: np.ndarray) -> list[np.ndarray]:
    """Catmull-Rom weights of the four samples around a position ``t`` in [0, 1)."""
    t2 = t * t
    t3 = t2 * t
    return [
        (-t3 + 2.0 * t2 - t) * 0.5,
        (3.0 * t3 - 5.0 * t2 + 2.0) * 0.5,
        (-3.0 * t3 + 4.0 * t2 + t) * 0.5,
        (t3 - t2) * 0.5,
    ]


def render_ink(digit: np.ndarray, height: int, tilt: int) -> tuple[np.ndarray, np.ndarray]:
    """Upscale and rotate one digit.

    Args:
        digit: ``(8, 8)``, grey levels 0 (paper) to 16 (ink).
        height: of the upscaled 8 rows, in pixels.
        tilt: rotation, clockwise, by 2*atan(tilt / 64).

    Returns:
        opacity: ``(h, w)`` int64, 0..256, cropped to where it is not 0. Within the digit it
            follows the grey level, which shows the narrow loops that the mask has lost.
        mask: ``(h, w)`` bool, the pixels of which ink covers at least half.
    """
    size = digit.shape[0]
    scale = height / size
    tangent = tilt / 64.0
    cos = (1.0 - tangent * tangent) / (1.0 + tangent * tangent)
    sin = 2.0 * tangent / (1.0 + tangent * tangent)

    pad = 4
    padded = np.zeros((size + 2 * pad, size + 2 * pad), dtype=np.float64)
    padded[pad:-pad, pad:-pad] = digit
    side = height + height // 2  # holds the square after any rotation by less than 20 degrees
    offset = np.arange(side) - (side - 1) / 2.0
    dy, dx = offset[:, None], offset[None, :]
    centre = (padded.shape[0] - 1) / 2.0
    # Beyond the padding there is only paper, as on its outermost rows.
    y = np.clip((cos * dy - sin * dx) / scale + centre, 1.0, padded.shape[0] - 3.0)
    x = np.clip((cos * dx + sin * dy) / scale + centre, 1.0, padded.shape[1] - 3.0)
    y0, x0 = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    wy, wx = _cubic_weights(y - y0), _cubic_weights(x - x0)
    grey = np.zeros((side, side), dtype=np.float64)
    for i in range(4):
        for j in range(4):
            grey = grey + wy[i] * wx[j] * padded[y0 + i - 1, x0 + j - 1]

    # The rim is about one output pixel wide, whatever the scale.
    ramp = min(max(16.0 / scale, 2.0), 8.0)
    coverage = np.clip((grey - INK_LEVEL) / ramp + 0.5, 0.0, 1.0)
    density = 0.65 + 0.35 * np.clip((grey - INK_LEVEL) / 8.0, 0.0, 1.0)
    opacity = np.floor(coverage * density * 256.0 + 0.5).astype(np.int64)
    rows, cols = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return opacity[window], coverage[window] >= 0.5


def _background(rng: np.random.RandomState, regions: Sequence[np.ndarray]) -> np.ndarray:
    """A crop of one of the photographs, of random size, mirrored or not, with less contrast."""
    region = regions[_draw(rng, 0, len(regions) - 1)]
    height, width = _draw(rng, *SIDE_RANGE), _draw(rng, *SIDE_RANGE)
    top = _draw(rng, 0, region.shape[0] - height)
    left = _draw(rng, 0, region.shape[1] - width)
    crop = region[top : top + height, left : left + width].astype(np.int64)
    if _draw(rng, 0, 1):
        crop = crop[:, ::-1]
    mean = crop.sum(axis=(0, 1)) // (height * width)
    contrast, shift = _draw(rng, 50, 80), _draw(rng, -30, 30)
    return np.clip(mean + shift + (crop - mean) * contrast // 100, 0, 255)


def _choose_ink(
    rng: np.random.RandomState, around: np.ndarray, touching: Sequence[np.ndarray]
) -> np.ndarray:
    """A random colour, ``(3,)``, that stands out from the mean colour around and other inks."""
    for _ in range(500):
        ink = np.array([_draw(rng, 0, 255) for _ in range(3)], dtype=np.int64)
        if abs(_luma(ink) - _luma(around)) >= MIN_LUMA_CONTRAST and all(
            int(np.abs(ink - other).sum()) >= MIN_DISTANCE for other in (around, *touching)
        ):
            return ink
    return np.full(3, 255 if _luma(around) < 128 else 0, dtype=np.int64)


class _Canvas:
    """An image that digits are painted on, and the visible masks of those already there."""

    def __init__(self, background: np.ndarray) -> None:
        self.image = background
        self.masks: list[np.ndarray] = []
        self._inks: list[np.ndarray] = []
        self._full_areas: list[int] = []

    def find_place(self, rng: np.random.RandomState, mask: np.ndarray) -> tuple[int, int] | None:
        """Where (top, left) a digit of this mask hides no other one for too much, if anywhere."""
        room_y = self.image.shape[0] - mask.shape[0]
        room_x = self.image.shape[1] - mask.shape[1]
        near = bool(self.masks) and _draw(rng, 0, 99) < NEAR_PERCENT
        for _ in range(PLACING_TRIES):
            top, left = _draw(rng, 0, room_y), _draw(rng, 0, room_x)
            if near:
                ys, xs = np.nonzero(self.masks[_draw(rng, 0, len(self.masks) - 1)])
                top = int(ys.min()) + _draw(rng, -mask.shape[0], int(ys.max() - ys.min()))
                left = int(xs.min()) + _draw(rng, -mask.shape[1], int(xs.max() - xs.min()))
                top, left = min(max(top, 0), room_y), min(max(left, 0), room_x)
            window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
            if all(
                int(other.sum()) - int((other[window] & mask).sum()) >= (1 - MAX_HIDDEN) * area
                for other, area in zip(self.masks, self._full_areas, strict=True)
            ):
                return top, left
        return None

    def paint(
        self, rng: np.random.RandomState, opacity: np.ndarray, mask: np.ndarray, top: int, left: int
    ) -> None:
        """Paint a digit over what is there, in a colour that stands out from it."""
        window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        patch = self.image[window]
        around = patch.sum(axis=(0, 1)) // mask.size
        touching = [
            ink
            for ink, other in zip(self._inks, self.masks, strict=True)
            if bool(other[window].any())
        ]
        ink = _choose_ink(rng, around, touching)
        weight = opacity[..., None]
        self.image[window] = (patch * (256 - weight) + ink * weight + 128) // 256

        for other in self.masks:
            other[window] &= ~mask
        full = np.zeros(self.image.shape[:2], dtype=bool)
        full[window] = mask
        self.masks.append(full)
        self._inks.append(ink)
        self._full_areas.append(int(mask.sum()))


def _source_stream(
    rng: np.random.RandomState, labels: np.ndarray, indices: Sequence[int]
) -> Iterator[int]:
    """Endless source indices: each class as often as every other, each source of it in turn."""
    pools: list[list[int]] = [[] for _ in range(10)]
    while True:
        for label in rng.permutation(10):
            if not pools[label]:
                of_class = [i for i in indices if labels[i] == label]
                pools[label] = [of_class[k] for k in rng.permutation(len(of_class))]
            yield pools[label].pop()


def generate_scenes(
    seed: int,
    count: int,
    digits: np.ndarray,
    labels: np.ndarray,
    indices: Sequence[int],
    regions: Sequence[np.ndarray],
) -> Iterator[DigitScene]:
    """Compose ``count`` scenes.

    Args:
        seed: of everything random here.
        count: how many scenes.
        digits: ``(M, 8, 8)``, grey levels 0..16.
        labels: ``(M,)``, integers 0..9.
        indices: the digits that may be used; every class must be among them.
        regions: parts of photographs to crop backgrounds from, ``(h, w, 3)`` uint8, each side
            at least ``SIDE_RANGE[1]`` pixels.

    Yields:
        the scenes, in an order that the seed fixes.
    """
    rng = np.random.RandomState(seed)
    stream = _source_stream(rng, labels, indices)
    for _ in range(count):
        canvas = _Canvas(_background(rng, regions))
        sources: list[int] = []
        for _ in range(_draw(rng, *DIGITS_PER_IMAGE)):
            source = next(stream)
            tilt = _draw(rng, -MAX_TILT, MAX_TILT)
            opacity, mask = render_ink(digits[source], _draw(rng, *HEIGHT_RANGE), tilt)
            place = canvas.find_place(rng, mask)
            if place is not None:
                canvas.paint(rng, opacity, mask, *place)
                sources.append(source)
        yield DigitScene(
            image=canvas.image.astype(np.uint8),
            labels=[int(labels[i]) for i in sources],
            sources=sources,
            masks=np.stack(canvas.masks),
        )
