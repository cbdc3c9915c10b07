"""Contract suites: hold a pool, a method, a stream or a family of your own to what the package's keep.

Each suite is a function that returns nothing, or raises AssertionError with a line that says which rule is broken.
"""

from ftn_jax.testing.compilations import counted_compilations
from ftn_jax.testing.families import check_base, check_family
from ftn_jax.testing.methods import check_method
from ftn_jax.testing.pools import check_pool
from ftn_jax.testing.streams import check_stream

__all__ = ["check_base", "check_family", "check_method", "check_pool", "check_stream", "counted_compilations"]
