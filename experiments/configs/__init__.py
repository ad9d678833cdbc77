"""Executable notes: one file for each experiment, with its measured result.

| config         | data, network and process                                   |
|----------------|-------------------------------------------------------------|
| `digits_edm`   | 8x8 digits, residual MLP, EDM: minutes on two CPU cores     |
| `digits_flow`  | 8x8 digits, residual MLP, flow matching                     |
| `mnist_flow`   | MNIST, UNet, flow matching: one GPU                         |
| `cifar10_edm`  | CIFAR-10, UNet, EDM: one GPU                                |

Each has a mode `smoke` (`--config=NAME:smoke`) that runs everything in seconds.
"""
