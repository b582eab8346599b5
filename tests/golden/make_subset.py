"""Cut the outputs of the reference implementation down to what the tests carry.

    python tests/golden/make_subset.py GOLDEN

GOLDEN holds official_mlp.npz, official_random_features.npz and, in folders of the same names, the reference's checkpoint
mlp.pt, made by running the reference implementation (github.com/ejaasaari/lemur) on 200 real documents and 40 queries. The
subset keeps the first 50 documents; maxsim_top20 becomes the order of those among them, padded with -1.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

NUM_DOCUMENTS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    golden = parser.parse_args().golden
    for name in ("official_mlp", "official_random_features"):
        full = dict(np.load(golden / f"{name}.npz"))
        counts = full["doc_counts"][:NUM_DOCUMENTS]
        top = np.full(full["maxsim_top20"].shape, -1, np.int32)
        for i, row in enumerate(full["maxsim_top20"]):
            kept = row[row < NUM_DOCUMENTS]
            top[i, : len(kept)] = kept
        half = full["ols_tokens"].astype(np.float16)
        assert np.array_equal(half.astype(np.float32), full["ols_tokens"])
        subset = {
            "doc_tokens": full["doc_tokens"][: counts.sum()],
            "doc_counts": counts,
            "query_tokens": full["query_tokens"],
            "query_counts": full["query_counts"],
            "ols_tokens": half,
            "weights": full["weights"][:NUM_DOCUMENTS],
            "query_features": full["query_features"],
            "maxsim_top20": top,
        }
        out = Path(__file__).parent / name
        out.mkdir(exist_ok=True)
        np.savez_compressed(out / "outputs.npz", **subset)
        shutil.copyfile(golden / name / "mlp.pt", out / "mlp.pt")


if __name__ == "__main__":
    main()
