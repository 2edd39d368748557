"""Publishing: the folder that plain diffusers loads, its model card and its provenance."""
