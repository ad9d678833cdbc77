"""Runnable experiments on top of genlib.

| module     | what it is                                             |
|------------|--------------------------------------------------------|
| `train`    | the one entry point that trains a config               |
| `sample`   | samples from a trained checkpoint                      |
| `evaluate` | how good samples are                                   |
| `build`    | the pieces of an experiment from its config            |
| `data`     | image data sets and their deterministic batches        |
| `plots`    | sample grids, loss curves and text tables              |
| `configs`  | executable notes: one file for each experiment         |
"""
