"""What the scripts of benchmarks/ share: counting, timing, and saying where a number comes from."""
