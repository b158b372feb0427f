"""Submit a training to SLURM: the same recipe, overrides and meaning as train_net.py."""

from wsbcn_slurm.submit import main

if __name__ == "__main__":
    main()
