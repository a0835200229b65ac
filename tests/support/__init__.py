"""What tests of several rooms share: small real inputs, the command line, doubles of CUDA and TensorRT."""
