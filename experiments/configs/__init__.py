"""Executable notes: one file for each experiment, with its measured result.

| config         | data, network and process                                   |
|----------------|-------------------------------------------------------------|
| `digits_edm`   | 8x8 digits, residual MLP, EDM: minutes on two CPU cores     |
| `digits_flow`  | 8x8 digits, residual MLP, flow matching                     |
| `mnist_flow`   | MNIST, UNet, flow matching: one GPU                         |
| `cifar10_edm`  | CIFAR-10, UNet, EDM: one GPU                                |

and normalizing flows, by maximum likelihood:

| config          | data and flow                                              |
|-----------------|------------------------------------------------------------|
| `two_moons_nsf` | points of known density, splines: a minute on two CPU cores |
| `digits_nsf`    | 8x8 digits, splines                                        |
| `digits_glow`   | 8x8 digits, Glow                                           |
| `patches_nsf`   | 8x8 patches of photographs, splines                        |
| `mnist_glow`    | MNIST, Glow: one GPU                                       |
| `cifar10_glow`  | CIFAR-10, Glow: one GPU                                    |

Each has a mode `smoke` (`--config=NAME:smoke`) that runs everything in seconds.
"""
