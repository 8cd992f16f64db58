"""The stages of the pipeline, one file each; `speedrun` is their table of contents."""
