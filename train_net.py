"""Train or evaluate a detector from a recipe (lazy config) or one of detectron2's yaml configs."""

from __future__ import annotations

import sys

EPILOG = """
examples:

  train a recipe with two processes, on GPUs where there are some, otherwise on the CPU
    $ python train_net.py --config-file configs/quick/mask_rcnn_r18_fpn_ws_gn.py --num-gpus 2 \\
        train.output_dir=output/quick

  go on after an interruption, from the last checkpoint in the output folder
    $ python train_net.py --config-file output/quick/config.yaml --num-gpus 2 --resume

  evaluate weights with one of detectron2's yaml configs, whose overrides are KEY VALUE pairs
    $ python train_net.py --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml \\
        --eval-only MODEL.WEIGHTS model_final.pth OUTPUT_DIR output/eval

--config-file takes a path, the name of a recipe, or the name of a config of detectron2's model zoo.
Under torchrun the processes are torchrun's: torchrun --nproc_per_node 8 train_net.py ….
"""

NO_DETECTRON2 = """\
train_net.py: error: cannot import detectron2 ({error})
  Looked for by {python}, in:
    {path}
  In this project's checkout, `make setup` makes an environment with it: .venv/bin/python.
  Otherwise follow https://detectron2.readthedocs.io/tutorials/install.html, in this environment."""


def main() -> None:
    from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2

    try:
        import detectron2.engine  # noqa: F401
    except ImportError as error:
        paths = "\n    ".join(path for path in sys.path if path)
        sys.exit(NO_DETECTRON2.format(error=error, python=sys.executable, path=paths))

    from wsbcn_d2.engine import run_command_line

    run_command_line(epilog=EPILOG)


if __name__ == "__main__":
    main()
