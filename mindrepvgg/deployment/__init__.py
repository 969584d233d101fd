"""The deploy form in other programs: ONNX, MindIR, Ascend's tools, and the engines that run them."""
