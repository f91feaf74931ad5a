"""The size of a compute buffer, found by doing what the server does: build the graph, run ggml's allocator.

In: an architecture, the shapes of its layers' weights, a `Batch`. Out: `Sizes`. Pure.

`values` are tensors and operations; `attention`, `feed_forward` and `recurrent` the blocks; `models` puts them together
by architecture; `allocator` is ggml-alloc.c; `simulate` walks through a model. Held against llama-server's own
`no_alloc` pass on thousands of random shapes (tests/plan/test_compute.py, `make fuzz`): equal to the byte.
"""

from launcher.plan.memory.graph.batch import Batch, Cache, NotSimulatedError
from launcher.plan.memory.graph.models import SIMULATED
from launcher.plan.memory.graph.simulate import Sizes, compute_bytes, undescribed

__all__ = ["SIMULATED", "Batch", "Cache", "NotSimulatedError", "Sizes", "compute_bytes", "undescribed"]
