"""The scripts of the WS and BCN releases on ImageNet, for 4 GPUs; a learning rate of 0.1 in both.

ResNet-50: 90 epochs of batches of 256, drops after 30 and 60. ResNet-101: 100 epochs of batches of
128, drops after 30, 60 and 90.
"""

from .imagenet import dataloader, drops, imagenet_resnet, optimizer, train, use_schedule

resnet50 = imagenet_resnet(50)
resnet101 = imagenet_resnet(101)
lr_multiplier_90e = drops(30, 60, of=90)
lr_multiplier_100e = drops(30, 60, 90, of=100)
