"""Writing ONNX: builder, emitter, files."""
