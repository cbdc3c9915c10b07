"""In-context learning: the base alone, with the support examples in the prompt."""

import jax
import jax.numpy as jnp

from ftn_jax.core.errors import InputError
from ftn_jax.methods.base import Configurer, Method, Selection


def icl(configurer: Configurer) -> Method:
    """In-context learning: the base without components answers, and nothing is trained.

    The prompt of each test example begins with the support batch that other methods recover a mask from
    (``configurer.support`` examples of the recovery split, keyed by (seed, i, j)). The model reads, of each support
    example in the order drawn, the tokens of its prompt, of its completion and the one that ends a text, as in
    training; then the prompt of the test example. Only the target of the test example is scored. There is no padding
    between these tokens, and positions run on. No mask is stored: both protocols have the same scores.

    Its pool has one component that is zero and stays zero: the base alone. `Method.adapt_pool` raises InputError for a
    pool that can't put examples into a prompt.

    Args:
      configurer: the settings of mask search, which are not used.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "metrics_in_context"):
            raise InputError("config.methods: icl puts examples into a prompt, expected pool.name=lora")
        return pool.replace(size=1)

    def init(pool, params, key):
        return jax.tree.map(jnp.zeros_like, params), {}

    def select(pool, params, extra, given):
        return Selection(jnp.zeros(1, jnp.int32))

    return Method(select, adapt_pool=adapt_pool, init=init, trains=False, in_context=True)
