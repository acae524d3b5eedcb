"""Patterns that people build by hand, over the public API of `Cache`: one file a pattern.

Place: level 6. Each takes a `Cache` (policy ``"keep"`` recommended) and a name of its own, keeps
what it shares in a namespace that nobody else sees, and goes by the kernel's word where the
question is who has died. docs/recipes/ says for each when to use it, and when a plain dict would
do.
"""

from shmcache.recipes.breaker import CircuitBreaker, CircuitOpen
from shmcache.recipes.hub import ClientHub
from shmcache.recipes.limiter import Limiter, LimiterTimeout, Permit
from shmcache.recipes.pending import Pending, PendingEvents
from shmcache.recipes.pool import PoolExhausted, Reservation, ResourcePool
from shmcache.recipes.ports import PortPool, is_bindable
from shmcache.recipes.tracker import ResourceExists, ResourceTracker

__all__ = [
    "CircuitBreaker",
    "CircuitOpen",
    "ClientHub",
    "Limiter",
    "LimiterTimeout",
    "Pending",
    "PendingEvents",
    "Permit",
    "PoolExhausted",
    "PortPool",
    "Reservation",
    "ResourceExists",
    "ResourcePool",
    "ResourceTracker",
    "is_bindable",
]
