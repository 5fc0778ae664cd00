"""Costs of the models on this machine: time, bytes, FLOPs and memory, peers beside them."""
