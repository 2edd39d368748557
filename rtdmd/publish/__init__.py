"""Publishing: the folder that plain diffusers loads, its model card, the gate that it must pass, and its provenance."""
