"""Fill devices: choose layers, split, experts, quantization and context from what the config leaves open.

In: one host's config and the catalogue. Out: the config with everything chosen, and what was chosen. Pure.

Left open is `n_gpu_layers: auto`, and what `fill` names; what is written there is the least that will do. The best is,
in this order: the fewest layers on the host, the fewest expert banks on the host, the largest files, the longest
contexts; each summed over the servers that share a device, of equal sums the one that takes the fewest bytes there.
Where the hardware file says how fast RAM and every device are read (`read_bandwidth_bytes`), the first two are weighed
by time instead: the least sum of what a token of each server takes. Each step weighs every combination that fits
(`frontier`), with the later steps at the least that will do. What goes onto cards is decided by the cards; a larger
file or context must fit into RAM, too.
"""

from launcher.plan.solve.choose import solve

__all__ = ["solve"]
