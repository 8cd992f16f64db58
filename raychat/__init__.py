"""raychat: the whole road from raw text to a chatbot you can talk to, distributed by Ray from end to end."""

__version__ = "0.1.0"
