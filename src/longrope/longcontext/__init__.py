"""Run long sequences in bounded memory: blockwise attention, layer chunks, context parallelism, offload."""
