"""Measurements: latency and throughput of networks side by side, and what a device computes."""
