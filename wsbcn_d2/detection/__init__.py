"""Detection on COCO and its like, the task that ``train_net.py`` trains."""

from .task import Detection

__all__ = ["Detection"]
