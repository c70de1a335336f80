"""Tensors to tensors: plain torch networks, an encoder and a decoder each."""
