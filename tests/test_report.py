"""tools/report.py: the page of a run, and of two beside one another."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_api

from tests.own_data import make_objects, write_coco
from tests.test_plot_ratios import write_run as write_ratios
from tests.test_setup import load_tool
from wsbcn_d2.analysis.ratio_bars import COLORS
from wsbcn_d2.analysis.run_folder import distinct_names, read_run
from wsbcn_d2.config import load_config, resolve_config_file
from wsbcn_d2.config.record import flatten_config
from wsbcn_d2.detection.plots import plot_detections
from wsbcn_d2.engine import command_line

tool = load_tool("report")
DATASET = "of_the_report"
RESULTS = "inference/coco_instances_results.json"
LOG = """[11/27 05:45:43] detectron2 INFO: Rank of current process: 0. World size: 1
[11/27 05:45:44] detectron2 INFO: Environment info:
-------------------  --------------------
sys.platform         linux
PyTorch              {torch} @/opt/<torch>
-------------------  --------------------
PyTorch built with:
  - GCC 13.3

[11/27 05:45:44] detectron2 INFO: Command line arguments: Namespace(opts=['train.seed=0'])
[11/27 05:45:44] wsbcn_d2.engine.command_line INFO: wsbcn_d2 0.1.0, commit 0123abc-dirty
[11/27 05:48:53] d2.utils.events INFO:  eta: 0:10:00  iter: 19  lr: 0.01  max_mem: 1500M
[11/27 05:48:53] d2.utils.events INFO:  eta: 0:00:00  iter: 39  lr: 0.01  max_mem: 1700M
"""


class Page(HTMLParser):
    """What a reader finds: text, headings, pictures, table cells; and what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.pictures: dict[str, Image.Image] = {}
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = dict(attrs)
        self.links += [values[key] for key in ("src", "href", "srcset", "data") if key in values]
        if tag == "img":
            data = values["src"].partition("base64,")[2]
            self.pictures[values["alt"]] = Image.open(io.BytesIO(base64.b64decode(data)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def row(self, name: str) -> list[str]:
        (found,) = [row[1:] for row in self.rows if row and row[0].removeprefix("≠ ") == name]
        return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four images with masks, registered; the content of the file of their annotations."""
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, make_objects(count=4))
    (file,) = folder.rglob("*.json")
    register_coco_instances(DATASET, {}, str(file), str(folder / "images"))
    yield json.loads(file.read_text())
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def write_results(file: Path, dataset: dict, score: float) -> None:
    """The truth as a detector's results, with masks as run lengths."""
    file.parent.mkdir(exist_ok=True)
    sides = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    results = []
    for thing in dataset["annotations"]:
        polygons = mask_api.frPyObjects(thing["segmentation"], *sides[thing["image_id"]])
        mask = mask_api.merge(polygons)
        kept = {key: thing[key] for key in ("image_id", "category_id", "bbox")}
        shape = {"size": mask["size"], "counts": mask["counts"].decode()}
        results.append({**kept, "score": score, "segmentation": shape})
    file.write_text(json.dumps(results))


def write_run(
    folder: Path, norm: str, shift: float = 0.0, torch: str = "2.14.1", dataset: str = DATASET
) -> None:
    """The folder of a run of a quick recipe; ``shift`` is added to its AP."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = resolve_config_file(f"quick/mask_rcnn_r18_fpn_{norm}")
    cfg = load_config(recipe, [f"dataloader.test.dataset.names={dataset}"])
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    lines = [
        {"iteration": i, "total_loss": 3 - i / 40, "loss_cls": 2 - i / 40, "lr": 0.02, "time": 0.25}
        for i in range(0, 40, 2)
    ]
    values = {"AP": 41.0, "AP50": 60.0, "APs": 30.0, "APl": float("nan"), "AP-round": 52.0}
    ends = {f"bbox/{name}": value + shift for name, value in values.items()}
    lines.append({"iteration": 40, **ends})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 4')
    (folder / "log.txt").write_text(LOG.format(torch=torch))
    Image.new("RGB", (60, 40), "gray").save(folder / "predictions.png")


def report(*words: str | Path) -> Page:
    tool.main([*map(str, words)])
    output = words[words.index("--output") + 1] if "--output" in words else words[0] / "report.html"
    page = Page(Path(output).read_text(encoding="utf-8"))
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert not page.tags & {"script", "link", "iframe"}
    assert all(min(picture.size) > 30 for picture in page.pictures.values())
    return page


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, dataset) -> Path:
    """The page of two runs."""
    folder = tmp_path_factory.mktemp("comparison")
    for name, norm, shift in (("a", "sn", 0), ("b", "sn_in_ln", -1.25)):
        write_ratios(folder / name)
        torch = f"2.{14 + bool(shift)}"
        write_run(folder / name, norm, shift, torch)
        write_results(folder / name / RESULTS, dataset, 0.9)
    report(folder / "a", folder / "b", "--output", folder / "page.html")
    return folder / "page.html"


def test_two_runs_stand_beside_one_another(comparison):
    page = Page(comparison.read_text(encoding="utf-8"))
    assert page.headings == [
        *("Runs", "Config", "Curves", "Evaluation", "Ratios of SN", "Predictions"),
        *("Speed and memory", "Environment"),
    ]
    captions = "\n".join(page.pictures)
    for expected in (
        *("Total loss", "Mean ratios of each layer", "Var ratios of each layer"),
        *("Means over the layers", "a. Ratios over the training", "b. Ratios over the training"),
        *("a. The largest ratio", "b. The largest ratio", "The truth and what each run found"),
    ):
        assert expected in captions
    assert len(page.pictures) == 9

    norms = [row for row in page.rows if row[1:] == ["SN", "SN_IN_LN"]]
    assert len(norms) == 1 and "model.backbone.norm, " in norms[0][0]
    assert page.row("AP") == ["41.0", "39.8 (−1.2)"]  # 39.75, and a half goes to the even digit
    assert page.row("APs (below 32² px)")[1] == "28.8 (−1.2)"
    assert page.row("class round") == ["52.0", "50.8 (−1.2)"]
    assert not any("APl" in row[0] for row in page.rows if row)
    assert page.row("step (s, median)") == ["0.250"] * 2
    assert page.row("GPU memory (MiB, most)") == ["1700"] * 2
    assert page.row("commit") == ["0.1.0, commit 0123abc-dirty"] * 2
    assert ["≠ PyTorch", "2.14 @/opt/<torch>", "2.15 @/opt/<torch>"] in page.rows


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
def test_a_browser_without_network_shows_the_ratios(comparison, tmp_path):
    picture = tmp_path / "page.png"
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        f"--user-data-dir={tmp_path / 'browser'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    command += ["--window-size=800,6000", f"--screenshot={picture}", comparison.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        assert image.size == (800, 6000)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in COLORS.values():
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - rgb).max(1) <= 8).sum() > 1000


def test_what_a_single_run_lacks_is_left_out_with_a_word(tmp_path):
    write_run(tmp_path / "gn", "gn")
    page = report(tmp_path / "gn")
    assert len(page.pictures) == 2  # curves, and the run's own predictions.png
    text = (tmp_path / "gn" / "report.html").read_text()
    for word in ("No SN, SyncSN or SSN layers recorded: gn", "coco_instances_results.json: gn"):
        assert word in text
    assert "<details>" in text and "conv_norm: GN" in text

    for name in ("config.yaml", "log.txt", "predictions.png"):
        (tmp_path / "gn" / name).unlink()
    (tmp_path / "gn" / "ratios.json").touch()  # as a run that ended before its first record
    (tmp_path / "gn" / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.5}\n')
    report(tmp_path / "gn")
    text = (tmp_path / "gn" / "report.html").read_text()
    for word in ("No config.yaml: gn", "No evaluation yet", "No environment in log.txt", "No SN, "):
        assert word in text


def test_without_its_images_a_run_shows_the_predictions_of_its_end(tmp_path):
    write_run(tmp_path / "gn", "gn", dataset="elsewhere")
    (tmp_path / "gn" / "inference").mkdir()
    (tmp_path / "gn" / RESULTS).write_text("[]")
    page = report(tmp_path / "gn")
    assert any("predictions of the end" in caption for caption in page.pictures)
    assert "Not drawn side by side" in (tmp_path / "gn" / "report.html").read_text()


def test_detections_are_drawn_as_the_truth_is(tmp_path, dataset):
    """Results equal to the truth, masks too, give the same picture; those below the score none."""
    files = {name: tmp_path / f"{name}.json" for name in ("right", "unsure")}
    for file, score in zip(files.values(), (0.9, 0.4), strict=True):
        write_results(file, dataset, score)
    figure = plot_detections(DATASET, files, num_images=2)
    assert len(figure.axes) == 6
    for truth, right, unsure in zip(*[iter(figure.axes)] * 3, strict=True):
        canvases = [axes.images[0].get_array() for axes in (truth, right, unsure)]
        assert np.array_equal(*canvases[:2]) and not np.array_equal(*canvases[1:])
        boxes = [
            sorted((*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches)
            for axes in (truth, right)
        ]
        assert boxes[0] and np.allclose(*boxes) and not unsure.patches
        labels = [sorted(t.get_text() for t in axes.texts) for axes in (truth, right)]
        assert [f"{label} 90%" for label in labels[0]] == labels[1]
        assert right.get_title() == f"right: {len(truth.patches)}"
        assert unsure.get_title() == "unsure: 0"


def test_a_config_is_read_without_the_modules_that_it_names(tmp_path):
    """As detectron2 reads it, where they are there; of others, the names."""
    run = tmp_path / "run"
    write_run(run, "sn")
    lines = "x: !!python/name:math.gcd ''\ny: !!python/tuple [1, !!python/name:math.lcm '']\n"
    with (run / "config.yaml").open("a") as file:
        file.write(lines)
    config = read_run(run).config
    assert config == flatten_config(LazyConfig.load(str(run / "config.yaml")))
    assert (config["x"], config["y[1]"]) == ("math.gcd", "math.lcm")
    with (run / "config.yaml").open("a") as file:
        file.write(lines.replace("math", "not_here").replace("x:", "z:").replace("y:", "w:"))
    assert read_run(run).config["w[1]"] == "not_here.lcm"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["out/sn/0", "out/ssn/0"], ["sn/0", "ssn/0"]),
        (["out/lr0.1", "out/lr0.2"], ["lr0.1", "lr0.2"]),
        (["out/a.pth", "out/b.pth"], ["a", "b"]),
        (["out/a"], [""]),
        (["out/sn/0"], ["sn/0"]),
        (["out/sn/0", "out/sn/1"], ["sn/0", "sn/1"]),
    ],
)
def test_runs_are_called_by_what_differs_in_their_paths(names, expected):
    assert distinct_names([Path(name) for name in names]) == expected


def test_a_run_names_the_commit_of_its_checkout(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    monkeypatch.setattr(command_line, "__file__", str(tmp_path / "package" / "engine" / "it.py"))
    assert command_line._commit() == "unknown"
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    git("tag", "--annotate", "--message=v1", "v1")  # not by its name
    assert command_line._commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert command_line._commit() == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nothing"], "nothing/metrics.json is not there, or has no values yet; name the"),
        (["{}/run", "{}/empty"], "empty/metrics.json is not there"),
        (["{}/run", "{}/run"], "different names"),
        (["{}/run", "--names", "a", "b"], "--names has 2 names for 1 runs"),
        (["{}/broken"], "broken/config.yaml cannot be read"),
        (["{}/run", "--output", "{}/no/page.html"], "page.html cannot be written: No such file"),
    ],
)
def test_mistakes_are_one_message(tmp_path, words, message):
    for name in ("run", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.5}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("a: [1")
    with pytest.raises(SystemExit, match=re.escape(message)):
        tool.main([word.format(tmp_path) for word in words])
    assert not list(tmp_path.rglob("*.html"))
