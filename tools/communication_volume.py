"""Count what the processes of a training send one another in a step, and predict what it costs.

One training step of a recipe's model runs on two CPU processes, with one tiny image each: the
volume depends neither on the images nor on the number of processes. Every collective that a norm
asks for is counted, and every bucket of gradients that DistributedDataParallel reduces.

The prediction, for p GPUs on links of B bytes/s: a ring all-reduce of n bytes takes
2 (p - 1) / p * n / B, an all-gather of n bytes from each GPU (p - 1) * n / B, and either one
waits ceil(log2 p) times (an all-reduce twice as often) for the latency of a message.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Collective", "count", "main", "predict"]

NORMS = ["GN", "SN_IN_LN", "SN", "BCN", "SyncSN", "SyncBCN", "naiveSyncBN_N"]


class Collective(NamedTuple):
    """One collective: who asked, in which pass, which kind, and how many bytes of one process."""

    source: str  # "norm" or "gradient"
    phase: str  # "forward" or "backward"
    kind: str  # "all_reduce" or "all_gather"
    numbers: int
    size: int


# --- counting --------------------------------------------------------------------------------


def count(norm: str, recipe: str, freeze_at: int | None = None) -> list[Collective]:
    """The collectives of one training step of ``recipe``'s model with ``norm`` everywhere.

    Args:
        norm: a name that ``get_norm`` takes.
        recipe: one of this project's, such as ``common/models/mask_rcnn_fpn``.
        freeze_at: stages of the backbone that are not trained; None as in the recipe.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (norm, recipe, freeze_at, folder), nprocs=2)
        rows = json.loads((Path(folder) / "collectives.json").read_text())
    return [Collective(*row) for row in rows]


def _rank(rank: int, norm: str, recipe: str, freeze_at: int | None, folder: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        collectives = _step(norm, recipe, freeze_at)
        if rank == 0:
            (Path(folder) / "collectives.json").write_text(json.dumps(collectives))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _step(norm: str, recipe: str, freeze_at: int | None) -> list[Collective]:
    from detectron2.config import instantiate
    from detectron2.utils.events import EventStorage

    import wsbcn_d2
    from wsbcn_d2.modeling import use_norm

    model_config = use_norm(wsbcn_d2.get_config(recipe).model, norm)
    if freeze_at is not None:
        model_config.backbone.bottom_up.freeze_at = freeze_at
    torch.manual_seed(0)
    model: nn.Module = instantiate(model_config).train()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    counted: list[Collective] = []

    # Without annotations: torch refuses any that are not its own classes, and these are strings.
    def gradients(state, bucket):  # type: ignore[no-untyped-def]
        counted.append(_entry("gradient", "backward", "all_reduce", bucket.buffer()))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())  # nothing is trained: counting is enough
        return done

    wrapped.register_comm_hook(None, gradients)
    with EventStorage(), _counting(counted) as phase:
        # The second of two: DistributedDataParallel forms its buckets after the first.
        for _ in range(2):
            counted.clear()
            phase[0] = "forward"
            losses = wrapped([_image()])
            phase[0] = "backward"
            torch.stack(list(losses.values())).sum().backward()
    return counted


def _entry(source: str, phase: str, kind: str, tensor: Tensor) -> Collective:
    return Collective(source, phase, kind, tensor.numel(), tensor.numel() * tensor.element_size())


@contextmanager
def _counting(counted: list[Collective]) -> Iterator[list[str]]:
    """Counts the collectives that Python code asks for; yields the phase, to be set."""
    phase = ["forward"]
    reduce: Any = dist.all_reduce
    gather: Any = dist.all_gather

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counted.append(_entry("norm", phase[0], "all_reduce", tensor))
        return reduce(tensor, *args, **kwargs)

    def all_gather(tensors: list[Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counted.append(_entry("norm", phase[0], "all_gather", tensor))
        return gather(tensors, tensor, *args, **kwargs)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather  # type: ignore[assignment]
    try:
        yield phase
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def _image() -> dict[str, Any]:
    """One image with one object, as a detectron2 mapper makes it; small, but with proposals."""
    from detectron2.structures import BitMasks, Boxes, Instances

    size = 64
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 56.0, 56.0]]))
    instances.gt_classes = torch.tensor([0])
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, 8:56, 8:56] = True
    instances.gt_masks = BitMasks(mask)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size, "width": size}


# --- predicting ------------------------------------------------------------------------------


def predict(
    collectives: Sequence[Collective], gpus: int, bandwidth: float, latency: float
) -> float:
    """Seconds that the collectives take one after the other.

    Args:
        gpus: p.
        bandwidth: B, bytes per second and link.
        latency: seconds that a message takes from one GPU to the next.
    """
    messages = math.ceil(math.log2(gpus)) if gpus > 1 else 0
    seconds = 0.0
    for collective in collectives:
        if collective.kind == "all_reduce":
            seconds += 2 * (gpus - 1) / gpus * collective.size / bandwidth + 2 * messages * latency
        else:
            seconds += (gpus - 1) * collective.size / bandwidth + messages * latency
    return seconds


# --- command line ----------------------------------------------------------------------------


def _tables(
    counts: dict[str, list[Collective]], gpus: list[int], bandwidth: float, latency: float
) -> Iterator[str]:
    yield "| norm | forward: collectives, KB | backward: collectives, KB | gradients: buckets, MB |"
    yield "|---|---|---|---|"
    for norm, collectives in counts.items():
        cells = []
        for phase in ("forward", "backward"):
            part = [c for c in collectives if c.source == "norm" and c.phase == phase]
            kinds = " + ".join(
                f"{len([c for c in part if c.kind == kind])} {kind}"
                for kind in ("all_reduce", "all_gather")
                if any(c.kind == kind for c in part)
            )
            cells.append(f"{kinds}, {sum(c.size for c in part) / 1e3:.1f}" if part else "–")
        part = [c for c in collectives if c.source == "gradient"]
        cells.append(f"{len(part)}, {sum(c.size for c in part) / 1e6:.1f}")
        yield f"| {norm} | {' | '.join(cells)} |"
    yield ""
    names = [f"{p} GPUs: norms, ms | gradients, ms" for p in gpus]
    yield f"| norm | {' | '.join(names)} |"
    yield "|---" * (1 + 2 * len(gpus)) + "|"
    for norm, collectives in counts.items():
        cells = [
            f"{1e3 * predict([c for c in collectives if c.source == s], p, bandwidth, latency):.1f}"
            for p in gpus
            for s in ("norm", "gradient")
        ]
        yield f"| {norm} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  the table of docs/distributed.md:
    python tools/communication_volume.py
  an own recipe's model, nothing frozen:
    python tools/communication_volume.py --recipe common/models/fcos_fpn --freeze-at 0
  slower links, statistics pooled within machines of 8 GPUs:
    python tools/communication_volume.py --bandwidth 25 --gpus 8""",
    )
    add = parser.add_argument
    add("--recipe", default="common/models/mask_rcnn_fpn", help="default: %(default)s")
    add("--norms", nargs="+", default=NORMS, metavar="NAME", help="default: all but CUDA's")
    add("--freeze-at", type=int, help="stages not trained; default: as in the recipe")
    add("--gpus", nargs="+", type=int, default=[8, 64, 512], metavar="P", help="to predict for")
    add("--bandwidth", type=float, default=100.0, help="Gb/s of a link (default: %(default)g)")
    add("--latency", type=float, default=10.0, help="µs of a message (default: %(default)g)")
    add("--json", action="store_true", help="print the counts instead: a list for each norm")
    options = parser.parse_args(arguments)
    counts = {norm: count(norm, options.recipe, options.freeze_at) for norm in options.norms}
    if options.json:
        print(json.dumps(counts))
        return
    bandwidth, latency = options.bandwidth * 1e9 / 8, options.latency * 1e-6
    print("\n".join(_tables(counts, options.gpus, bandwidth, latency)))


if __name__ == "__main__":
    main()
