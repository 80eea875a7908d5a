"""Benchmarks of `lamp bench`: work of the library beside its strongest peers, on the same data, in one run."""
