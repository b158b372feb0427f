"""Training options that every recipe starts from; `wsbcn_d2.engine` explains and uses them."""

train = dict(
    # Checkpoints, metrics.json, TensorBoard events, config.yaml, log.txt and the pictures go here.
    output_dir="output",
    # Weights to start from (a path or URL); "" trains from scratch.
    init_checkpoint="",
    # Weights that a finetuning recipe is made for. They are not fetched unasked: name them, or a
    # file with them, in init_checkpoint. Without, the run starts from random weights, and warns.
    pretrained="",
    # Whose training a recipe repeats, for the recipe book; configs/common/protocols have them.
    protocol="",
    # Iterations (optimizer steps) of the whole training.
    max_iter=90000,
    # The length as passes over the training images instead: max_iter becomes what they take, and
    # the learning rate's schedule, which is relative to it, follows. 0: max_iter counts. Lazy
    # configs only.
    epochs=0,
    # With epochs: iterations at least, however few images there are.
    min_iter=0,
    # Images that a process puts through the model at once. The batch of a step is
    # dataloader.train.total_batch_size whatever the hardware: what images_per_gpu × processes leave
    # of it is accumulated. 0: total_batch_size / processes, hence no accumulation.
    images_per_gpu=0,
    # For another total_batch_size than the recipe was made for: multiplies the learning rate by
    # total_batch_size / reference_batch_size and the warm-up's iterations by the inverse.
    scale_lr=dict(enabled=False, reference_batch_size=16),
    # Rescales the momentum of running statistics and BCN's estimates, which are updated once per
    # micro-batch, so that their averaging horizon, in images, does not depend on accumulation.
    correct_momentum=False,
    # Order, augmentations and samplings follow from the seed and the recipe alone: a resumed run is
    # the run that was never interrupted. False: detectron2's own loader and random numbers.
    exact_resume=True,
    # --resume takes learning rate, momentum and weight decay from the checkpoint, unless
    # new_hyperparameters; and refuses a checkpoint of another model (norms, weight standardization,
    # shapes), unless other_model.
    resume=dict(new_hyperparameters=False, other_model=False),
    # An image that cannot be loaded: "error", or "skip" to take another one in its place, until
    # more than max_share of a process's images were bad.
    bad_data=dict(action="error", max_share=0.01),
    # On these, save a checkpoint after the current step and exit with status 75.
    stop_signals=["SIGUSR2"],
    # Sparse SN (SSN): its radius grows until all ratios are one-hot after this share of max_iter.
    ssn_full_at=1.0,
    # SN's batch average: every evaluation has plain averages over this many batches of each process
    # as running statistics, and so has the last checkpoint (not ema's). 0: moving averages.
    batch_average_iters=0,
    # Mixed precision. dtype: "float16" (with loss scaling) or "bfloat16"; CPUs take bfloat16.
    amp=dict(enabled=False, dtype="float16"),
    # DistributedDataParallel, with more than one process.
    ddp=dict(
        # Running statistics are averaged before evaluation and checkpoints instead.
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    # Processes that pool the statistics of a synchronized norm (SyncSN, SyncBCN; BCN's estimates):
    # 0 for all, "node" for those of a machine, or a number that divides theirs.
    sync_group_size=0,
    # Gradients of a larger total norm are scaled down to max_norm.
    clip_grad=dict(enabled=False, max_norm=1.0, norm_type=2.0),
    # Exponential moving average of weights and buffers: evaluated and saved when enabled.
    ema=dict(enabled=False, decay=0.9998),
    # period: iterations between checkpoints; max_to_keep: older ones are deleted.
    checkpointer=dict(period=5000, max_to_keep=100),
    # Iterations between evaluations; 0 evaluates at the end only.
    eval_period=5000,
    # Iterations between lines of the log, metrics.json and TensorBoard.
    log_period=20,
    # "auto" (CUDA where there is a GPU, otherwise CPU), "cuda" or "cpu".
    device="auto",
    # Of weights, data and samplings; negative: a new one each run, which --resume keeps.
    seed=-1,
    # Checks of the config (train_net.py --check; docs/checks.md) to leave out, by name.
    silence=[],
    # Deterministic algorithms where torch has them (slower).
    deterministic=False,
    cudnn_benchmark=False,
    # predictions.png: how many validation images, and from which score on a prediction is drawn.
    vis=dict(num_images=8, score_threshold=0.5),
)
