"""Run artifacts: open and verify them, keep their cache, sample, stream, measure.

Nothing here imports TVM's compiler, torch or onnx: a process that runs an artifact loads ``libtvm_ffi`` and
``libtvm_runtime``. Start at ``session.load``; the compiler writes through ``artifact.write_artifact``.
"""
