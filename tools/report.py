"""One page of a run, or of several beside one another: a file that needs no network.

    $ python tools/report.py output/quick/mask_rcnn_r18_fpn_sn
    $ python tools/report.py output/sn output/ssn --names SN SSN --output sn_ssn.html

What differs in the configs; curves; AP by class and size, with differences from the first run; what
SN layers learned; predictions beside the truth; speed, memory, environment and commit.
"""

from __future__ import annotations

import argparse
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.analysis.curves import plot_curves, plot_runs
from wsbcn_d2.analysis.ratio_figures import figures_over_time, ratio_figures
from wsbcn_d2.analysis.run_folder import RunFolder, distinct_names, read_run
from wsbcn_d2.analysis.run_ratios import load_run_ratios
from wsbcn_d2.config import load_config, read_config
from wsbcn_d2.config.record import config_changes
from wsbcn_d2.errors import UserError, exit_with_message
from wsbcn_d2.html_page import figure_tag, html_page, html_table, image_tag

__all__ = ["main"]

_STYLE = """body { max-width: 800px } h2 { margin-top: 2em; border-bottom: 1px solid #999 }
table { border-collapse: collapse; font-size: 13px } tbody tr:nth-child(odd) { background: #f3f3f3 }
td { overflow-wrap: anywhere; min-width: 3.5em } td:first-child { min-width: 9em }
td, th { padding: 2px 0.6em }
figure { margin: 1em 0 } img { max-width: 100%; height: auto } figcaption { color: #444 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }"""
_COLUMNS = 3
_RESULTS = Path("inference", "coco_instances_results.json")
_CAPTIONS = {
    "layers": "Ratios of each layer at the end; arXiv:1907.10473, figures 5 and 12",
    "layers_mean": "Mean ratios of each layer at the end; arXiv:1907.10473, figures 4, 5 and 14",
    "layers_var": "Var ratios of each layer at the end; arXiv:1907.10473, figures 4, 5 and 14",
    "parts": "Means over the layers of each part; arXiv:1907.10473, figures 1a and 4",
    "curves": "Ratios over the training; arXiv:1907.10473, figures 7, 10, 11 and 13",
    "snapshots": "The largest ratio of each layer during training; arXiv:1907.10473, figure 8",
}
# Of detectron2's COCO evaluation; objects' areas in pixels.
_SIZES = {
    "APs": "APs (below 32² px)",
    "APm": "APm (32² to 96² px)",
    "APl": "APl (above 96² px)",
}
_FIRST = ("AP", "AP50", "AP75", *_SIZES)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs, write the page, print where it is."""
    args = _parser().parse_args(argv)
    with exit_with_message("report.py"):
        if args.names and len(args.names) != len(args.runs):
            raise UserError(f"--names has {len(args.names)} names for {len(args.runs)} runs")
        names = args.names or distinct_names(args.runs)
        if len(set(names)) < len(names):
            raise UserError("the runs need different names: " + ", ".join(names))
        runs = [read_run(path, name) for path, name in zip(args.runs, names, strict=True)]
        sections = {
            "Runs": _overview(runs),
            "Config": _config(runs),
            "Curves": _curves(runs),
            "Evaluation": _evaluation(runs),
            "Ratios of SN": "".join(_ratios(runs)),
            "Predictions": _predictions(runs),
            "Speed and memory": _columns([run.speed() for run in runs], runs),
            "Environment": _environment(runs),
        }
        body = "\n".join(f"<h2>{title}</h2>\n{text}" for title, text in sections.items())
        output = args.output or args.runs[0] / "report.html"
        page = html_page(", ".join(run.name for run in runs), body, _STYLE)
        try:
            output.write_text(page, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    print(output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders")
    parser.add_argument("--output", type=Path, help="the page (report.html in the first folder)")
    parser.add_argument("--names", nargs="+", help="what to call the runs (their folders)")
    return parser


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _columns(
    columns: Sequence[dict[str, str]], runs: Sequence[RunFolder], numbers: bool = True
) -> str:
    """A table with a column for each run, of the values by name; "≠" marks what differs."""
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, "–") for column in columns]
        mark = "≠ " if not numbers and len(set(values)) > 1 else ""
        rows.append([mark + key, *values])
    return html_table(rows, ["", *(run.name for run in runs)], numbers=numbers)


def _overview(runs: Sequence[RunFolder]) -> str:
    columns = []
    for run in runs:
        ends = {k: f"{value:.1f}" for k, (_, value) in run.evaluations.items() if k.endswith("/AP")}
        logged = {key: value for key, value in run.logged.items() if "(" not in key}
        done = {"folder": str(run.path), "iterations": f"{run.iterations:,}"}
        columns.append(done | ends | logged)
    return _columns(columns, runs, numbers=False)


def _config(runs: Sequence[RunFolder]) -> str:
    without = [run.name for run in runs if not run.config]
    if without:
        return _note(f"No config.yaml: {', '.join(without)}.")
    if len(runs) == 1:
        text = html.escape((runs[0].path / "config.yaml").read_text(encoding="utf-8"))
        return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"
    changed = dict.fromkeys(
        key for run in runs[1:] for key in config_changes(runs[0].config, run.config)
    )
    if not changed:
        return _note("The configs are the same.")
    # A norm is in many places: those with the same values share a row.
    places: dict[tuple[str, ...], list[str]] = {}
    for key in changed:
        values = tuple(run.config.get(key, "(none)") for run in runs)
        places.setdefault(values, []).append(key)
    rows = [[", ".join(keys), *values] for values, keys in places.items()]
    return html_table(rows, ["key", *(run.name for run in runs)], numbers=False)


def _curves(runs: Sequence[RunFolder]) -> str:
    if len(runs) == 1:
        buffer = io.BytesIO()
        plot_curves(runs[0].path / "metrics.json", buffer)
        return image_tag(buffer.getvalue(), "png", "losses, learning rate and evaluations")
    known = dict.fromkeys(name for run in runs for name in run.curves)
    evaluated = [name for run in runs for name in run.evaluations]
    main = [name for name in evaluated if name.endswith("/AP")] or evaluated
    metrics = [name for name in ("total_loss", *dict.fromkeys(main)) if name in known]
    figure = plot_runs({run.name: run.curves for run in runs}, metrics)
    return figure_tag(figure, "Total loss, a running mean, and evaluations", dpi=110)


def _evaluation(runs: Sequence[RunFolder]) -> str:
    tasks = dict.fromkeys(n.rpartition("/")[0] for run in runs for n in run.evaluations)
    if not tasks:
        return _note("No evaluation yet.")
    parts = [_note(f"In brackets, the difference from {runs[0].name}.")] if len(runs) > 1 else []
    for task in tasks:
        found = [
            {
                name.removeprefix(f"{task}/"): end
                for name, end in run.evaluations.items()
                if name.rpartition("/")[0] == task
            }
            for run in runs
        ]
        names = dict.fromkeys(name for ends in found for name in ends)
        rows = [_evaluation_row(n, found) for n in sorted(names, key=_order)]
        done = [max((i for i, _ in ends.values()), default=0) for ends in found]
        at = ", ".join(f"{run.name} {i:,}" for run, i in zip(runs, done, strict=True))
        parts.append(
            html_table(rows, [task, *(run.name for run in runs)], numbers=True)
            + _note(f"Iterations: {at}")
        )
    return "".join(parts)


def _order(metric: str) -> tuple[int, str]:
    """Detection's summary, then other metrics, then those of classes, whose names have a dash."""
    if metric in _FIRST:
        return _FIRST.index(metric), ""
    return len(_FIRST) + ("-" in metric), metric


def _evaluation_row(name: str, found: Sequence[dict[str, tuple[int, float]]]) -> list[str]:
    values = [ends[name][1] if name in ends else None for ends in found]
    cells = ["–" if value is None else f"{value:.1f}" for value in values]
    for i, value in enumerate(values):
        if i > 0 and value is not None and values[0] is not None:
            cells[i] += f" ({value - values[0]:+.1f})".replace("-", "−")
    label = f"class {name[3:]}" if name.startswith("AP-") else _SIZES.get(name, name)
    return [label, *cells]


def _ratios(runs: Sequence[RunFolder]) -> Iterator[str]:
    ratios, without = [], []
    for run in runs:
        try:
            # Without the file, a checkpoint would be read, which has no ratios either.
            if not (run.path / "ratios.json").is_file():
                raise UserError("no SN layers")
            ratios.append(load_run_ratios(run.path, run.name))
        except UserError:  # or ended before the first record
            without.append(run.name)
    if without:
        yield _note(f"No SN, SyncSN or SSN layers recorded: {', '.join(without)}.")
    if not ratios:
        return
    drawn = dict(ratio_figures(ratios))
    if not any(name.startswith("layers") for name in drawn):
        yield _note("Bars of each layer are drawn of up to four runs that have layers in common.")
    for name, figure in drawn.items():
        yield figure_tag(figure, _CAPTIONS[name])
    for each in ratios if len(ratios) > 1 else []:
        for name, figure in figures_over_time(each):
            yield figure_tag(figure, f"{each.name}. {_CAPTIONS[name]}")


def _predictions(runs: Sequence[RunFolder]) -> str:
    results = {run.name: run.path / _RESULTS for run in runs if (run.path / _RESULTS).is_file()}
    without = [run.name for run in runs if run.name not in results]
    parts = [_note(f"No {_RESULTS}: {', '.join(without)}.")] if without else []
    if results:
        try:
            return "".join([*parts, _side_by_side(runs, results)])
        except Exception as error:  # data that are elsewhere: whatever their loader says
            parts.append(_note(f"Not drawn side by side: {error}"))
    for run in runs:
        file = run.path / "predictions.png"
        if file.is_file():
            caption = f"{run.name}: predictions of the end beside the truth"
            image = image_tag(file.read_bytes(), "png", caption)
            parts.append(f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>")
    return "".join(parts)


def _side_by_side(runs: Sequence[RunFolder], results: dict[str, Path]) -> str:
    from wsbcn_d2 import data  # noqa: F401  registers the data that a config may name
    from wsbcn_d2.detection.plots import plot_detections

    configs: list[Any] = [
        read_config(load_config(str(run.path / "config.yaml")))
        for run in runs
        if run.name in results
    ]
    names = {config.dataset_names("test")[0] for config in configs}
    if len(names) > 1:
        raise UserError(f"the runs were evaluated on different data: {', '.join(sorted(names))}")
    threshold = configs[0].options.vis.score_threshold
    caption = f"The truth and what each run found, scores from {threshold:g} on"
    name, each = names.pop(), list(results.items())
    # A row has room for few pictures.
    groups = [dict(each[i : i + _COLUMNS]) for i in range(0, len(each), _COLUMNS)]
    return "".join(
        figure_tag(plot_detections(name, group, score_threshold=threshold), caption)
        for group in groups
    )


def _environment(runs: Sequence[RunFolder]) -> str:
    without = [run.name for run in runs if not run.environment]
    note = _note(f"No environment in log.txt: {', '.join(without)}.") if without else ""
    rows = [run.environment for run in runs]
    return note + (_columns(rows, runs, numbers=False) if any(rows) else "")


if __name__ == "__main__":
    main()
