"""ResNet-110 with GN on CIFAR-10."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=10, depth=110, norm="GN")
train.output_dir = "./output/classification/cifar/cifar10_resnet110_gn"
