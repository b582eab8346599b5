"""What an index says of itself: recall and latency, settings to choose, health, memory, and why a document is found or not."""

from lemur_ann.insight.stats import Part, Stats

__all__ = ["Part", "Stats"]
