"""From a corpus and training queries to the learned map. Torch is imported only here, and by a search on a device."""
