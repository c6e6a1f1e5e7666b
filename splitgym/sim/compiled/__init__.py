"""The compiled engine's parts: struct-of-arrays state and the Numba functions that move it."""
