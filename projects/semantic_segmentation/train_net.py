"""Train or evaluate a segmentation network from a recipe."""

from projects.semantic_segmentation.semantic_segmentation import SemanticSegmentation
from wsbcn_d2.engine import run_command_line

TASK = SemanticSegmentation()

if __name__ == "__main__":
    run_command_line(TASK)
