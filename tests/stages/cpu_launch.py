"""`longrope` in several processes on the CPU with what accelerate and torch only have for GPUs.

``accelerate launch`` starts it as it would start ``-m longrope``. Three things stand in:

- accelerate's state takes its FSDP plugin only for several GPUs; here it does for several CPU processes.
- It takes its DeepSpeed plugin only if not told to use the CPU.
- torch has no ring attention for the CPU's kernel; here each process gathers all keys and values instead.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from longrope.cli.main import main

plain_init = AcceleratorState.__init__
plain_attention = torch.nn.functional.scaled_dot_product_attention


def init(
    self: AcceleratorState, mixed_precision: Any = None, cpu: Any = None, fsdp_plugin: Any = None, **kwargs: Any
) -> None:
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    plain_init(self, mixed_precision, None if deepspeed else cpu, fsdp_plugin=fsdp_plugin, **kwargs)
    if deepspeed:
        from deepspeed import comm  # pyright: ignore[reportMissingImports]

        comm.is_initialized() or comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    if not isinstance(query, DTensor):
        return plain_attention(query, key, value, **kwargs)
    mesh, count = query.device_mesh, query.device_mesh.size()
    keys, values = (one.full_tensor(grad_placements=[Partial()]) for one in (key, value))
    # torch balances the load: of 2n parts of the sequence, process r has parts r and 2n - 1 - r
    parts = torch.arange(keys.shape[2]).chunk(2 * count)
    places = [torch.cat([parts[rank], parts[2 * count - 1 - rank]]) for rank in range(count)]
    seen = places[mesh.get_local_rank()][:, None] >= torch.cat(places)[None, :]
    kept = {name: kwargs[name] for name in ("scale", "enable_gqa") if name in kwargs}
    found = plain_attention(query.to_local(), keys, values, attn_mask=seen, **kept)
    return DTensor.from_local(found, mesh, query.placements)


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention
    main()
