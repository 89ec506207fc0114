"""Export: fold a checkpoint into one small graph, write it as ONNX, prove that it still agrees."""
