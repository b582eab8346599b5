"""What an index holds at one moment, and how that is asked."""

from lemur_ann.searching.filters import booleans
from lemur_ann.searching.settings import Settings, Tuned

__all__ = ["Settings", "Tuned", "booleans"]
