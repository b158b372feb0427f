"""ResNet-56 with BN on CIFAR-100."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=100, depth=56, norm="BN")
train.output_dir = "./output/classification/cifar/cifar100_resnet56_bn"
