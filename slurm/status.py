"""How runs are: a table from their folders and squeue, with sacct or without."""

from wsbcn_slurm.status import main

if __name__ == "__main__":
    main()
