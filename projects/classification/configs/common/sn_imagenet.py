"""The SN paper's protocol on ImageNet (arXiv:1907.10473, Sections 4.1.1 to 4.1.3): ResNet-50.

100 epochs, tenfold drops after 30, 60 and 90, a learning rate of 0.1 for 256 images a step and by
the linear rule for others. The paper writes a setting (GPUs, images a GPU). Here the second is
``train.images_per_gpu``, over which statistics are taken, so that a setting is the same on any
number of GPUs that divides the first.
"""

from .imagenet import dataloader, drops, model, optimizer, train, use_schedule

lr_multiplier = drops(30, 60, 90, of=100)


def use_setting(gpus, images_per_gpu, batch_average=False):
    """Set the batch of this recipe, and with it the learning rate and the number of iterations.

    Args:
        gpus: the paper's.
        images_per_gpu: images that statistics are taken over.
        batch_average: whether running statistics become averages over 50k images in the end, as
            the paper evaluates SN.
    """
    total = gpus * images_per_gpu
    use_schedule(epochs=100, total_batch_size=total, lr=0.1 * total / 256)
    train.images_per_gpu = images_per_gpu
    train.batch_average_iters = -(-50_000 // total) if batch_average else 0
