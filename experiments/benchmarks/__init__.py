"""Benchmarks, each a module that prints a table: `python -m experiments.benchmarks.X`.

| module     | what it measures                                                        |
|------------|-------------------------------------------------------------------------|
| `samplers` | cost of a step beside scans written by hand and beside other libraries  |
| `orders`   | order of convergence of every solver on the exact mixture               |
| `quality`  | quality against network calls for every solver, as one plot             |
"""
