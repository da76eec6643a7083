"""Side-by-side benchmarks: each measures the product and a peer or limit in turn, in the same run."""
