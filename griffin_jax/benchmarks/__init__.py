"""What the models cost on the machine at hand: time, bytes, FLOPs and memory, peers beside them."""
