"""Contract suites: check your own pool, method, stream or family against the rules that the package's own follow.

Each suite is a function that returns None, or raises AssertionError with a line that says which rule is broken.
"""

from ftn_jax.testing.compilations import counted_compilations
from ftn_jax.testing.families import check_base, check_family
from ftn_jax.testing.methods import check_method
from ftn_jax.testing.pools import check_pool
from ftn_jax.testing.streams import check_stream

__all__ = ["check_base", "check_family", "check_method", "check_pool", "check_stream", "counted_compilations"]
