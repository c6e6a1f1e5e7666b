"""What learning gains over the heuristics: `make benchmark`, docs/benchmark.md and docs/benchmark.json.

A section is one file of `sections/`: it makes its runs, each of which is kept, and returns tables and claims.
`python -m benchmarks.learned SECTION` replaces that section in docs/benchmark.json and writes the page anew.
"""
