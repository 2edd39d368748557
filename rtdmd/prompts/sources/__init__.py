"""Where prompts come from: the world's captions, prompts made here, files of yours and files of Hub datasets.

Each module gives a list of `rtdmd.prompts.records.Source`; `rtdmd.stages.prepare_prompts` puts them together.
"""
