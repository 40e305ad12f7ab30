"""Benchmarks: ratios of two things measured side by side in one run, since machines are shared and noisy."""
