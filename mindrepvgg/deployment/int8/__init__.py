"""INT8 after training: an exported network in 8-bit integers by onnxruntime's tools, repaired and judged."""
