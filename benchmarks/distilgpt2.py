"""The sizes that the LoRA benchmarks share, and the matrix products in their passes."""

from ftn_jax.models.families import decoder_config
from ftn_jax.models.published import published_config

MODEL = decoder_config(published_config("distilgpt2"), "distilgpt2")
SIZE, RANK, K = 576, 4, 72  # H, r, k: the active components have rank 288 together
BATCH, SUPPORT, MAX_LENGTH, LEARNING_RATE = 8, 16, 96, 5e-4


def step_gflop(tokens: int, length: int, targets: int) -> float:
    """A training pass, with the adapter as two thin products for each token."""
    adapter = 3 * 2 * tokens * 4 * MODEL.width * K * RANK * MODEL.layers
    return _base_gflop(tokens, length, targets) + adapter / 1e9


def mask_gflop(tokens: int, length: int, targets: int) -> float:
    """A step of mask search, with Delta W(m) formed from all the components and its gradient taken back to them."""
    d_in, d_out = MODEL.modules["attn.c_attn"]
    delta = 2 * 2 * d_in * d_out * SIZE * RANK + 2 * tokens * d_in * d_out
    return _base_gflop(tokens, length, targets) + MODEL.layers * delta / 1e9


def _base_gflop(tokens: int, length: int, targets: int) -> float:
    """Loss and its gradient with respect to the inputs of every layer; the weights are frozen."""
    d = MODEL.width
    linear = 2 * tokens * (4 * d * d + 2 * d * MODEL.inner)
    attention = 2 * 2 * tokens * length * d
    head = 2 * targets * d * MODEL.vocabulary
    return (2 * MODEL.layers * linear + 3 * MODEL.layers * attention + 2 * head) / 1e9
