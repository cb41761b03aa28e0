"""Values that must not move: with versions of numpy, scipy and numba, with threads, with how denormal numbers are treated."""
