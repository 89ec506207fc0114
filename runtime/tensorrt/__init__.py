"""TensorRT engines: build, cache, check, run."""
