"""An algorithm for ann-benchmarks (github.com/erikbern/ann-benchmarks); copy this folder into the harness, see module.py."""
