"""Many models of one structure trained at once."""

from .population import Population as Population
