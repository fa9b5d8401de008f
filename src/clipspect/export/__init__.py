"""How the networks run: precision chosen by measurement, and export to ONNX and OpenVINO."""
