"""Reading GGUF files: what they say of a network and its tokenizer, and their tensors as its weights."""
