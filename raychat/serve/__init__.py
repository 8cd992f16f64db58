"""The chat service: the OpenAI API and the chat page over one engine, without Ray (raychat/cluster/serve.py has it)."""
