"""End the jobs of runs for good: nothing is requeued. Their checkpoints stay."""

from wsbcn_slurm.cancel import main

if __name__ == "__main__":
    main()
