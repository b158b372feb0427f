"""A training loader whose order depends on the config and not on the number of processes.

There is a single infinite sequence of dataset indices, produced by one of detectron2's samplers. An
index and its position in the sequence are a *sample*. Each optimizer step takes the next
``total_batch_size`` samples and splits them into micro-batches; micro-batch m goes to rank m mod W.
The augmentation of a sample is drawn from (seed, position). The images of a step and their
augmentations therefore depend on the seed and the batch size only, and a run can start at any
position by skipping indices, without loading images.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import operator
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.utils.data as torchdata
from detectron2.data import DatasetFromList
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from ..errors import UserError
from .seeding import hashed, seeded

__all__ = [
    "BadDataError",
    "TrainLoader",
    "WorkerError",
    "build_train_loader",
    "describe_bad_image",
]

logger = logging.getLogger(__name__)

Sample = tuple[int, int]
# Replacements tried for one sample, and how many images of a rank may be bad before their share
# counts: the first image of a run is either 0% or 100%.
_ATTEMPTS = 10
_FREE_SKIPS = 10


class BadDataError(UserError, RuntimeError):
    """An image or its annotations cannot be used; the message says which, and what to do."""


class WorkerError(UserError, RuntimeError):
    """A data loader worker died; the message says which, of which rank, and how."""


def build_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[Any], Any] | None,
    sampler: Any = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    images_per_gpu: int,
    run_seed: int,
    start: int = 0,
    skip_bad: bool = False,
    max_bad_share: float = 0.01,
    **options: Any,
) -> TrainLoader:
    """detectron2's ``build_detection_train_loader`` with an order independent of the processes.

    It takes the arguments of detectron2's function, and those from ``images_per_gpu`` on. With
    aspect-ratio grouping, the images of a step are sorted by orientation, so that at most one of
    its micro-batches has both. (detectron2 groups images across steps, so that the number of images
    per GPU affects which images a step sees.)

    Args:
        dataset: list of dicts, or map-style dataset.
        mapper: maps an element of ``dataset`` to a model input. If it returns None, another element
            is taken without a message.
        sampler: one of detectron2's training samplers, whose rank and seed are replaced. None
            shuffles the dataset in each epoch.
        total_batch_size: images in an optimizer step, over all ranks.
        images_per_gpu: images in a micro-batch.
        run_seed: seed of the order and the augmentations, equal on all ranks.
        start: position of the first sample.
        skip_bad: replace an image that cannot be loaded; otherwise it is an error.
        max_bad_share: largest fraction of a rank's images that may be replaced.
        options: arguments of torch's ``DataLoader``.

    Raises:
        ValueError: the order of the sampler cannot be made equal on all ranks, or the batch is not
            a multiple of the micro-batches of all ranks.
    """
    sequence = _global_order(sampler or TrainingSampler(len(dataset), seed=run_seed), run_seed)
    wide = _wide(dataset) if aspect_ratio_grouping and images_per_gpu > 1 else None
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    micro_batches = _MicroBatches(sequence, total_batch_size, images_per_gpu, wide, start)
    # Ours takes their place.
    for name in ("seed", "drop_last"):
        options.pop(name, None)
    loader = torchdata.DataLoader(
        _Samples(dataset, mapper, run_seed, skip_bad),
        batch_sampler=micro_batches,
        num_workers=num_workers,
        collate_fn=_Collate(collate_fn),
        worker_init_fn=_init_worker,
        **options,
    )
    return TrainLoader(loader, len(dataset), max_bad_share)


class TrainLoader:
    """Infinite iterable over the micro-batches of this rank.

    Args:
        loader: torch's ``DataLoader``.
        num_samples: number of images in the dataset.
        max_bad_share: as in `build_train_loader`.

    Attributes:
        loaded, skipped: number of images loaded on this rank, and of those that were replaced.
    """

    def __init__(
        self, loader: torchdata.DataLoader[Any], num_samples: int, max_bad_share: float
    ) -> None:
        self.loader = loader
        self.num_samples = num_samples
        self.loaded = self.skipped = 0
        self._max_bad_share = max_bad_share
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Any]:
        """Raises BadDataError where images are bad, or too many of them."""
        self._iterator = iter(self.loader)
        while True:
            message = ""
            try:
                batch, count, skipped = next(self._iterator)
            except BadDataError as error:
                message = str(error)
            if message:
                # Not in the handler: that error's traceback keeps torch's iterator alive in a
                # cycle, of which the garbage collector makes a queue that is closed before the
                # workers are told to end.
                raise BadDataError(message)
            self.loaded += count
            for message in skipped:
                self.skipped += 1
                logger.warning("Skipped (number %d of this rank): %s", self.skipped, message)
            if self.skipped > max(_FREE_SKIPS, self._max_bad_share * self.loaded):
                raise BadDataError(
                    f"rank {comm.get_rank()} had to skip {self.skipped} of its {self.loaded} "
                    f"images, more than a share of {self._max_bad_share:g} (and than "
                    f"{_FREE_SKIPS}); the last: {skipped[-1] if skipped else 'see above'}\n"
                    "  Repair the dataset, or allow more: train.bad_data.max_share=… (lazy), "
                    "DATALOADER.BAD_DATA.MAX_SHARE … (yaml)"
                )
            yield batch

    def dead_workers(self) -> list[str]:
        """Describe the worker processes that ended before the training."""
        workers = getattr(self._iterator, "_workers", [])
        lines = []
        for i, worker in enumerate(workers):
            worker.join(0)
            if worker.exitcode is None:
                continue
            how = f"exited with code {worker.exitcode}"
            if worker.exitcode < 0:
                how = f"was killed by {signal.Signals(-worker.exitcode).name}"
            lines.append(f"worker {i} of {len(workers)} (pid {worker.pid}) {how}")
        return lines


def _global_order(sampler: Any, seed: int) -> Iterator[int]:
    names = ("_rank", "_world_size", "_seed")
    if not all(hasattr(sampler, name) for name in names):
        raise ValueError(
            f"sampler ({type(sampler).__name__}) must be one of detectron2's training samplers, "
            "whose order can be made the same for any number of processes; with another one, set "
            "train.exact_resume=False (lazy) or SOLVER.EXACT_RESUME False (yaml)"
        )
    for name, value in zip(names, (0, 1, seed), strict=True):
        setattr(sampler, name, value)
    return iter(sampler)


def _wide(dataset: Any) -> list[bool] | None:
    """Whether each image is wider than high; None where that takes more than reading a list."""
    if not isinstance(dataset, list) or not all("width" in d and "height" in d for d in dataset):
        logger.warning(
            "No aspect-ratio grouping: the dataset is no list of dicts with width and height"
        )
        return None
    return [d["width"] > d["height"] for d in dataset]


class _MicroBatches(torchdata.Sampler[list[Sample]]):
    """Infinite iterator over the samples of each micro-batch of this rank."""

    def __init__(
        self,
        sequence: Iterator[int],
        total: int,
        size: int,
        wide: Sequence[bool] | None,
        start: int,
    ) -> None:
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        if total < 1 or size < 1 or total % (size * self._world_size):
            raise ValueError(
                f"total_batch_size ({total}) must be a positive multiple of images_per_gpu "
                f"({size}) × {self._world_size} process(es)"
            )
        self._sequence, self._total, self._size = sequence, total, size
        self._wide, self._start = wide, start

    def __iter__(self) -> Iterator[list[Sample]]:
        samples = itertools.islice(enumerate(self._sequence), self._start, None)
        count = self._total // self._size
        while True:
            step = list(itertools.islice(samples, self._total))
            wide = self._wide
            if wide is not None:
                step = sorted(step, key=lambda sample: not wide[sample[1]])
            for m in range(self._rank, count, self._world_size):
                yield step[m * self._size : (m + 1) * self._size]


class _Samples(torchdata.Dataset[tuple[Any, list[str]]]):
    """Maps a sample to the model input, and messages about the bad images that it replaces."""

    def __init__(
        self, dataset: Any, mapper: Callable[[Any], Any] | None, seed: int, skip_bad: bool
    ) -> None:
        self._dataset, self._seed, self._skip_bad = dataset, seed, skip_bad
        self._mapper = mapper or (lambda record: record)

    def __getitem__(self, sample: Sample) -> tuple[Any, list[str]]:
        position, index = sample
        skipped: list[str] = []
        for attempt in range(_ATTEMPTS):
            record: Any = None
            try:
                with seeded("sample", self._seed, position, attempt):
                    record = self._dataset[index]
                    mapped = self._mapper(record)
            except MemoryError:
                raise
            except Exception as error:  # whatever a decoder or an augmentation makes of bad data
                where = f"dataset index {index}, position {position} of the run"
                message = describe_bad_image(record, where, error)
                if not self._skip_bad:
                    raise BadDataError(
                        f"{message}\n  To go on with another image instead: "
                        "train.bad_data.action=skip (lazy), DATALOADER.BAD_DATA.ACTION skip (yaml)"
                    ) from None
                skipped.append(message)
            else:
                if mapped is not None:
                    return mapped, skipped
            index = hashed("replacement", self._seed, position, attempt) % len(self._dataset)
        raise BadDataError(
            f"{_ATTEMPTS} images in a row cannot be used for the sample at position {position}: "
            + ("\n  ".join(skipped) or "the mapper returned None for them")
        )


def describe_bad_image(record: Any, where: str, error: Exception) -> str:
    """The message about an image that a mapper cannot use.

    Args:
        record: element of the dataset.
        where: where in the run it was used, which follows the image's id.
        error: raised by the mapper.
    """
    fields = record if isinstance(record, dict) else {}
    return (
        f"image {fields.get('file_name', '(no file name)')} (image_id "
        f"{fields.get('image_id', 'unknown')}, {where}) cannot be used: {type(error).__name__}: "
        f"{error}{_where(error)}"
    )


def _where(error: Exception) -> str:
    """Where an error was raised; "" for unreadable files and images of another size."""
    if isinstance(error, (OSError, SizeMismatchError)):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" (in {frame.name}, {frame.filename}:{frame.lineno})"


class _Collate:
    """(mapped image, messages) pairs → (batch, number of images, all messages)."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: list[tuple[Any, list[str]]]) -> tuple[Any, int, list[str]]:
        batch: Any = list(map(operator.itemgetter(0), samples))
        messages = [message for _, skipped in samples for message in skipped]
        if self._collate_fn is not None:
            batch = self._collate_fn(batch)
        return batch, len(samples), messages


def _init_worker(_: int) -> None:
    """Make the worker ignore SIGTERM from any process but its rank.

    A scheduler sends SIGTERM to all processes of a job, and the rank needs its workers to finish
    the step after which it saves a checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    rank = parent.pid
    # Blocked here, and in the threads started from here, so that it waits for that thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
