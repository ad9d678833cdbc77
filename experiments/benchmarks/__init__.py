"""Benchmarks, each a module that prints a table: `python -m experiments.benchmarks.X`.

| module | what it measures |
|---|---|
| `samplers` | cost of a sampling step beside a hand-written scan, and compile time |
"""
