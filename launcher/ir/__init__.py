"""The frozen types that travel between rooms, one file a stage. Pure.

`config` (what was written) → `catalog` (what the models are) → `dialect` (what the binary accepts) →
`plan` (what will run, and what it takes) → `deployment` (files as values) → `fleet` (what the runtime reads);
`host` is what the machine has.
"""
