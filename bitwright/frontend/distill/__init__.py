"""Distillation: quantized weights are trained until the model predicts what the float model predicts. Needs torch."""
