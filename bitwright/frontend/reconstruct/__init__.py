"""Block-wise reconstruction: quantized blocks are trained until they compute what the float blocks compute."""
