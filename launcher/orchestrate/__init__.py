"""Requests → routed, generated, validated, committed. I/O.

Nothing is here yet: the config group `orchestration/` is validated and planned for, and no request goes through it.
"""
