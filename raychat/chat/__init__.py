"""A conversation as tokens, as text while it is generated, and the tools that it calls."""
