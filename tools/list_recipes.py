"""List the recipes, and write the recipe book, docs/recipes.md, from them."""

from __future__ import annotations

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2

# isort: split

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsbcn_d2 import recipes
from wsbcn_d2.checkpoint.norm_kinds import describe_norms

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "docs" / "recipes.md"
# What a recipe does not say itself: published results, our own, counted costs, and the book's text.
DATA = ROOT / "docs" / "recipes"
HEIGHT, WIDTH = 800, 1333

EPILOG = """
examples:

  show the Mask R-CNN recipes with BCN
    $ python tools/list_recipes.py 'mask_rcnn.*bcn'

  write docs/recipes.md after a change of a recipe or of a file in docs/recipes/
    $ python tools/list_recipes.py --write

  the same after a change of a model: count parameters and GFLOPs again (a few minutes)
    $ python tools/list_recipes.py --count --write
"""


def read_data(name: str) -> Any:
    """One of the files in docs/recipes/."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def build(cfg: DictConfig) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return instantiate(cfg.model)


def norms_of(model: nn.Module) -> str:
    """Such as "FrozenBN / GN": kinds in the backbone, and in FPN and heads; "+WS" with WS."""
    found = describe_norms(model)
    kinds: dict[str, Counter[str]] = {"backbone": Counter(), "heads": Counter()}
    standardizes = {"backbone": False, "heads": False}
    for module, kind in found["norms"].items():
        kinds[_side(module)][kind] += 1
    for module, is_ws in found["convs"].items():
        standardizes[_side(module)] |= is_ws
    texts = [
        ", ".join(kind + "+WS" * standardizes[side] for kind in sorted(kinds[side])) or "none"
        for side in kinds
    ]
    return " / ".join(dict.fromkeys(texts))


def _side(module: str) -> str:
    inside_bottom_up = module.startswith("backbone.") and not module.startswith("backbone.fpn_")
    return "backbone" if inside_bottom_up else "heads"


def count_parameters(model: nn.Module) -> int:
    """All of them, frozen ones too."""
    return sum(p.numel() for p in model.parameters())


def count_gflops(model: Any, height: int = HEIGHT, width: int = WIDTH) -> float:
    """Multiply-adds, in 1e9, of convolutions and linear layers for one image.

    The image is padded as the model pads it. The parts are run one by one on the meta device, with
    as many boxes as the model keeps: which boxes those are would need weights.

    Args:
        model: from `build`.
        height, width: pixels.
    """
    divisor = max(model.backbone.size_divisibility, 1)
    padded = [-(-side // divisor) * divisor for side in (height, width)]
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        features = model.backbone(torch.empty(1, 3, *padded))
        if hasattr(model, "proposal_generator"):
            rpn = model.proposal_generator
            rpn.rpn_head([features[name] for name in rpn.in_features])
            _run_roi_heads(model.roi_heads, features, rpn.post_nms_topk[False])
        else:
            model.head([features[name] for name in model.head_in_features])
        if hasattr(model, "sem_seg_head"):
            model.sem_seg_head.layers(features)
    return counter.get_total_flops() / 2 / 1e9  # it counts a multiply-add as two


def _run_roi_heads(heads: Any, features: dict[str, torch.Tensor], num_proposals: int) -> None:
    channels = next(iter(features.values())).shape[1]

    def boxes(number: int, pooler: Any) -> torch.Tensor:
        return torch.empty(number, channels, *pooler.output_size)

    if hasattr(heads, "res5"):
        heads.box_predictor(heads.res5(boxes(num_proposals, heads.pooler)).mean(dim=(2, 3)))
        return
    stages = heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]
    predictors = (
        heads.box_predictor
        if isinstance(heads.box_predictor, nn.ModuleList)
        else [heads.box_predictor]
    )
    for head, predictor in zip(stages, predictors, strict=True):
        predictor(head(boxes(num_proposals, heads.box_pooler)))
    detections: Any = predictors[0].test_topk_per_image
    if heads.mask_on:
        heads.mask_head.layers(boxes(detections, heads.mask_pooler))
    if heads.keypoint_on:
        heads.keypoint_head.layers(boxes(detections, heads.keypoint_pooler))


def schedule_of(cfg: DictConfig) -> str:
    """Such as "90,000 (60,000, 80,000)"."""
    scheduler = cfg.lr_multiplier.get("scheduler", cfg.lr_multiplier)
    total = cfg.train.max_iter
    if cfg.train.epochs:
        return f"{cfg.train.epochs} epochs, {cfg.train.min_iter:,} at least (cosine)"
    if "milestones" not in scheduler:
        return f"{total:,} (cosine)"
    drops = [step for step in scheduler.milestones if step < total]
    return f"{total:,} ({', '.join(f'{step:,}' for step in drops)})"


def summarize(name: str, cfg: DictConfig, model: nn.Module) -> dict[str, str]:
    """One row of the book, without what comes from docs/recipes/."""
    return {
        "recipe": f"`{name}`",
        "norms": norms_of(model),
        "protocol": cfg.train.protocol or "own",
        "images a step": str(cfg.dataloader.train.total_batch_size),
        "schedule": schedule_of(cfg),
        "learning rate": f"{cfg.optimizer.lr:g}",
        "starts from": _weights(OmegaConf.select(cfg, "train.pretrained")),
    }


def _weights(path: str) -> str:
    return f"`{path}`" if path else "random weights"


def complete(name: str, row: dict[str, str]) -> dict[str, str]:
    """A row of `summarize` with costs and results.

    Raises:
        SystemExit: the recipe was never counted.
    """
    costs = read_data("costs").get(name)
    if costs is None:
        sys.exit(f"list_recipes.py: {name} is not in {DATA}/costs.json; run with --count")
    published = read_data("published")
    targets, batches = [], []
    for result in published["rows"]:
        if result["recipe"] == name:
            source = published["sources"][result["source"]]
            where = f"[{source['name']}]({source['url']}), {result['table']}: {result['row']}"
            targets.append(f"{_ap(result)} ({where})")
            if result["gpus"]:
                batches.append(f"{result['gpus']} × {result['images_per_gpu']}")
    ours = [
        f"{_ap(result, 1)} ([log]({result['log']}), {result['hardware']}, {result['commit']}: "
        f"`{result['command']}`)"
        for result in read_data("results")
        if result["recipe"] == name
    ]
    row = dict(row)
    if batches:
        row["images a step"] += f" ({', '.join(dict.fromkeys(batches))})"
    return {
        **row,
        "parameters": f"{costs['parameters'] / 1e6:.1f} M",
        "GFLOPs": f"{costs['gflops']:.0f}",
        "published AP": "; ".join(targets) or "–",
        "ours": "; ".join(ours) or "not run",
    }


def _ap(result: dict[str, Any], digits: int = 2) -> str:
    values = [result["box_ap"], result.get("mask_ap")]
    return " / ".join(_number(round(value, digits)) for value in values if value is not None)


def _number(value: float | None) -> str:
    """With the source's decimals: one, or two."""
    if value is None:
        return ""
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"


def published_details(rows: list[dict[str, Any]], sources: dict[str, Any]) -> str:
    """A table of what the sources report besides AP.

    Args:
        rows, sources: of docs/recipes/published.json.
    """
    columns = {
        "AP50": ("box", "AP50"),
        "AP75": ("box", "AP75"),
        "APs": ("box", "APs"),
        "APm": ("box", "APm"),
        "APl": ("box", "APl"),
        "mask AP50": ("mask", "AP50"),
        "mask AP75": ("mask", "AP75"),
        "mask APs": ("mask", "APs"),
        "mask APm": ("mask", "APm"),
        "mask APl": ("mask", "APl"),
    }
    lines = []
    for row in rows:
        values = {title: row.get(kind, {}).get(key) for title, (kind, key) in columns.items()}
        values |= {"mem": row.get("memory_gb"), "fps": row.get("fps")}
        if any(values.values()):
            where = f"{sources[row['source']]['name']}, {row['table']}: {row['row']}"
            head = {"row": where, "recipe": f"`{row['recipe']}`", "AP": _ap(row)}
            lines.append(head | {title: _number(value) for title, value in values.items()})
    return table(lines)


def without_recipe(published: dict[str, Any]) -> str:
    """A table of all tables of the sources: how many rows, how many with a recipe, and the others.

    Args:
        published: docs/recipes/published.json.
    """
    counts = Counter((row["source"], row["table"]) for row in published["rows"])
    lines = []
    for each in published["tables"]:
        source = published["sources"][each["source"]]
        lines.append(
            {
                "table": f"[{source['name']}]({source['url']}), {each['table']}",
                "rows": str(each["rows"]),
                "with a recipe": str(counts[each["source"], each["table"]]),
                "without": "; ".join(each["without"]) or "–",
            }
        )
    return table(lines)


SECTIONS = (
    ("Finetuning Faster R-CNN with FPN", r"finetune/faster_rcnn_.*_fpn_"),
    ("Finetuning Mask R-CNN with FPN", r"finetune/mask_rcnn_"),
    ("Finetuning Faster R-CNN C4", r"finetune/faster_rcnn_r50_c4"),
    ("Finetuning other detectors", r"finetune/"),
    ("From scratch", r"scratch/"),
    ("Small: the user's own data", r"small/"),
    ("Quick: the embedded digits", r"quick/"),
)


def section_of(name: str) -> str:
    return next(title for title, pattern in SECTIONS if re.match(pattern, name))


def render(rows: dict[str, dict[str, str]]) -> str:
    """The book.

    Args:
        rows: of `summarize`, by recipe.
    """
    sections = []
    for title, _ in SECTIONS:
        lines = [complete(name, row) for name, row in rows.items() if section_of(name) == title]
        sections.append(f"## {title}\n\n{table(lines)}")
    published = read_data("published")
    return (
        (DATA / "book.template")
        .read_text(encoding="utf-8")
        .format(
            sections="\n".join(sections),
            details=published_details(published["rows"], published["sources"]),
            without=without_recipe(published),
        )
    )


def table(rows: list[dict[str, str]]) -> str:
    """Rows of equal keys in Markdown."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def count_all(models: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Parameters and GFLOPs, by recipe."""
    return {
        name: {
            "parameters": count_parameters(model),
            "gflops": round(count_gflops(model), 2),
        }
        for name, model in models.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 where --check found the book stale."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pattern", nargs="?", default="", help="regular expression that names match in some part"
    )
    parser.add_argument("--count", action="store_true", help="count parameters and GFLOPs again")
    parser.add_argument("--write", action="store_true", help=f"write {BOOK.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="whether the book is what it would be")
    args = parser.parse_args(argv)

    every = args.write or args.check or args.count
    try:
        names = [n for n in recipes.list_configs() if every or re.search(args.pattern, n)]
    except re.error as error:
        parser.error(f"{args.pattern!r} is no regular expression: {error}")
    if not names:
        parser.error(f"no recipe matches {args.pattern!r}; without a pattern all are listed")
    configs = {name: recipes.get_config(name) for name in names}
    models = {name: build(cfg) for name, cfg in configs.items()}
    if args.count:
        lines = [f"  {json.dumps(n)}: {json.dumps(c)}" for n, c in count_all(models).items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (DATA / "costs.json").write_text(text, encoding="utf-8")
    rows = {name: summarize(name, cfg, models[name]) for name, cfg in configs.items()}
    if args.check:
        stale = not BOOK.is_file() or BOOK.read_text(encoding="utf-8") != render(rows)
        print(f"{BOOK.relative_to(ROOT)} is {'stale: run with --write' if stale else 'as it is'}")
        return int(stale)
    if args.write:
        BOOK.write_text(render(rows), encoding="utf-8")
    else:
        print(table([complete(name, row) for name, row in rows.items()]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
