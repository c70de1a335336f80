"""Raw Arrow columns to tensors and back, learnt in one streamed, mergeable pass."""
