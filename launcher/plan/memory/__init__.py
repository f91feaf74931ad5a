"""How much memory a llama-server takes.

In: a `ModelFile` (header only) and `Settings`. Out: `DeviceMemory` per device. Pure.

KV, recurrent state and output are exact; weights are exact but for page rounding; compute is a bound that no build from
b10068 to b11434 exceeded (`compute`). Each file has one topic; `process` adds them up. Formulas name llama.cpp's file
and function.
"""
