"""The GPU kit: every GPU test and GPU benchmark in one run, one JSON file and one set of tables.

Sections run in the order of their importance, each in a process of its own. A section that fails is reported with its
reason, and the others still run. The file is written after each section, so that an interrupted run keeps its results.
Without a GPU, the same sections run in a reduced form on Warp's CPU device, which shows that the kit works.
"""
