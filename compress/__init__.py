"""The offline half: distil a classifier, export it to ONNX, quantise it, and prove what was kept."""
