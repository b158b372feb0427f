"""ResNet-20 with BCN and WS on CIFAR-10."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=10, depth=20, norm="BCN", standardize=True)
train.output_dir = "./output/classification/cifar/cifar10_resnet20_ws_bcn"
