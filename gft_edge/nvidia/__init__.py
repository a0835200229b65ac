"""NVIDIA machines: the CUDA runtime, TensorRT's libraries, engines and what became of a graph in them."""
