"""ResNet-20 with BCN and WS on CIFAR-100."""

from ..common.cifar import lr_multiplier, optimizer, recipe, train

model, dataloader = recipe(num_classes=100, depth=20, norm="BCN", standardize=True)
train.output_dir = "./output/classification/cifar/cifar100_resnet20_ws_bcn"
