"""Test loaders of detectron2 whose errors name the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.data.common import MapDataset

from .train_loader import BadDataError, describe_bad_image

__all__ = ["name_bad_images"]


def name_bad_images(loader: Any) -> None:
    """Make a test loader raise `BadDataError` with file and id of an image that it cannot use.

    Args:
        loader: result of ``build_detection_test_loader``, changed in place; other loaders are not
            changed.
    """
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, MapDataset):
        dataset._map_func = _NamingMapper(dataset._map_func)


class _NamingMapper:
    def __init__(self, mapper: Callable[[Any], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: Any) -> Any:
        try:
            return self._mapper(record)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder makes of bad data
            raise BadDataError(describe_bad_image(record, "in evaluation", error)) from None
