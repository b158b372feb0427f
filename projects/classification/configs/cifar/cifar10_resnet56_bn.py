"""ResNet-56 with BN on CIFAR-10."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=10, depth=56, norm="BN")
train.output_dir = "./output/classification/cifar/cifar10_resnet56_bn"
