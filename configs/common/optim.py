"""SGD as in all the papers: momentum 0.9, weight decay 1e-4 but 0 on every norm's parameters."""

from detectron2 import model_zoo

optimizer = model_zoo.get_config("common/optim.py").SGD  # weight_decay_norm is 0 there already
