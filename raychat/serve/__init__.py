"""The chat service without Ray: the OpenAI API and the chat page over one engine."""
