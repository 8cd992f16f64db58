"""From text to batches: shards of documents are packed into rows of tokens and read back as batches."""
