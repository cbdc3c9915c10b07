"""The one training loop, its state, and the evaluation of what is trained."""
