"""Runnable experiments on top of genlib.

| module           | what it is                                            |
|------------------|-------------------------------------------------------|
| `train`          | the one entry point that trains a config              |
| `sample`         | samples from a trained checkpoint                     |
| `evaluate`       | how good samples are                                  |
| `likelihood`     | bits per dimension of held-out images                 |
| `build`          | the pieces of an experiment from its config           |
| `density`        | normalizing flows: their config, loss and validation  |
| `density_report` | what a trained flow is worth                          |
| `data`           | data sets and their deterministic batches             |
| `plots`          | sample grids, loss curves and text tables             |
| `flow_map`       | networks of two times, which sample in one call       |
| `flows2d`        | couplings and re-flow in two dimensions, as one table |
| `configs`        | executable notes: one file for each experiment        |
"""
