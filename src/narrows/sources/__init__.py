"""Bytes to raw Arrow record batches: streamed, sharded, resumable; nothing here knows of tensors or models."""
