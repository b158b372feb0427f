"""What tools/benchmark_norms.py times, and how."""
