"""Train or evaluate a classifier from a recipe; a checkpoint starts a detector as it is."""

from projects.classification.classification import Classification
from wsbcn_d2.engine import run_command_line

TASK = Classification()

if __name__ == "__main__":
    run_command_line(TASK)
