"""Benches: one for each room of `kernels/`, run as `python -m bench.bench_<room>`."""
