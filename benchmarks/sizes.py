"""The sizes that the LoRA benchmarks share, and the matrix products in their passes."""

from collections.abc import Sequence

from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.decoder import DecoderConfig
from ftn_jax.models.published import published_config

NAMES = {"distilgpt2": "distilgpt2", "smollm2": "HuggingFaceTB/SmolLM2-135M"}
MODELS = {name: decoder_config(published_config(full), full) for name, full in NAMES.items()}
MODEL = MODELS["distilgpt2"]
SIZE, RANK, K = 576, 4, 72  # H, r, k: the active components have rank 288 together
BATCH, SUPPORT, MAX_LENGTH, LEARNING_RATE = 8, 16, 96, 5e-4


def qkv(model: DecoderConfig) -> tuple[str, ...]:
    """The modules that the components adapt."""
    return tuple(name for role, name in model.linears if role in ("qkv", "q", "k", "v"))


def step_gflop(tokens: int, length: int, targets: int, model: DecoderConfig = MODEL, rank: int = K * RANK) -> float:
    """A training pass, with the adapter as two thin products for each token."""
    adapter = 3 * 2 * tokens * sum(sum(model.modules[name]) for name in qkv(model)) * rank * model.layers
    return _base_gflop(tokens, length, targets, model) + adapter / 1e9


def mask_gflop(tokens: int, length: int, targets: int, model: DecoderConfig = MODEL) -> float:
    """A step of mask search, with Delta W(m) formed from all the components and its gradient taken back to them."""
    products = [d_in * d_out for d_in, d_out in _shapes(model, qkv(model))]
    delta = sum(2 * 2 * product * SIZE * RANK + 2 * tokens * product for product in products)
    return _base_gflop(tokens, length, targets, model) + model.layers * delta / 1e9


def _shapes(model: DecoderConfig, names: Sequence[str]) -> list[tuple[int, int]]:
    return [model.modules[name] for name in names]


def _base_gflop(tokens: int, length: int, targets: int, model: DecoderConfig) -> float:
    """Loss and its gradient with respect to the inputs of every layer; the weights are frozen."""
    linear = 2 * tokens * sum(d_in * d_out for d_in, d_out in _shapes(model, tuple(model.modules)))
    attention = 2 * 2 * tokens * length * model.heads * model.head_width
    head = 2 * targets * model.width * model.vocabulary
    return (2 * model.layers * linear + 3 * model.layers * attention + 2 * head) / 1e9
