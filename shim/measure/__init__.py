"""Measuring: one clock, worker processes that are timed in turn, and the run file that keeps every sample."""
