"""ResNet-110 with GN on CIFAR-100."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=100, depth=110, norm="GN")
train.output_dir = "./output/classification/cifar/cifar100_resnet110_gn"
