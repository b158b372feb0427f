"""SGD with momentum 0.9 and weight decay 1e-4, 0 on norms' parameters; a protocol may change it."""

from detectron2 import model_zoo

optimizer = model_zoo.get_config("common/optim.py").SGD
