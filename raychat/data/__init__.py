"""The road of text: shards of documents, packed into rows of tokens, read back as batches."""
