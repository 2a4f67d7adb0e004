"""How the processes of a job find each other, also after torchrun has restarted them.

torchrun (torch 2.14, ``--standalone`` or ``--rdzv-backend c10d``) gives restarted workers the key
store of the attempt before, where gloo finds the addresses of processes that are dead: "connectFullMesh
failed: connection refused" (pytorch issues 135712, 167288). ``init_process_group(init_method=INIT_METHOD)``
is ``env://`` with keys of its own for each attempt.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

_SCHEME = "codistill"
INIT_METHOD = f"{_SCHEME}://"


def _of_this_attempt(url: str, timeout: Any = default_pg_timeout, **options: Any) -> Iterator[Any]:
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # Without torchrun's own store each attempt has a new one, and nodes may count their restarts differently.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if shared else "0"
    yield distributed_c10d.PrefixStore(f"attempt{attempt}", store), rank, world_size
    raise RuntimeError("the processes of a job meet once")


if dist.is_available():
    register_rendezvous_handler(_SCHEME, _of_this_attempt)  # type: ignore[no-untyped-call]
