"""Ways to serve a language model from several devices, as ordinary torch.distributed programs.

Each module is a script: `torchrun --nproc-per-node 4 -m leeboard.sim.strategies.tensor_parallel`
runs it on real devices, `leeboard sim run --platform edge.yaml -m
leeboard.sim.strategies.tensor_parallel` on simulated ones. None of them knows which it is.
"""
