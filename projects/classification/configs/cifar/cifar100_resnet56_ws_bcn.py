"""ResNet-56 with BCN and WS on CIFAR-100."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=100, depth=56, norm="BCN", standardize=True)
train.output_dir = "./output/classification/cifar/cifar100_resnet56_ws_bcn"
