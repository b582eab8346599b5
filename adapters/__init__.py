"""lemur_ann under the interfaces of other systems: one module per system, imported only when you import it."""
