"""Training on a SLURM cluster, with submitit. The scripts beside this package are its commands."""
