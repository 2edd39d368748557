"""What a run needs before it starts: parameters, peak memory by part, FLOPs, hours on a GPU.

No weights are read: the models are built on torch's meta device, where a tensor has a shape and no memory, and the very
velocity passes of each stage run on them. `rtdmd plan` prints it; Snakemake's resources come from it.
"""
