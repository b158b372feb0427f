"""ResNet-110 with BCN and WS on CIFAR-100."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=100, depth=110, norm="BCN", standardize=True)
train.output_dir = "./output/classification/cifar/cifar100_resnet110_ws_bcn"
