"""Frozen base models: the Flax GPT-2 and the loader of Hugging Face checkpoints."""
