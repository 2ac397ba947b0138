"""The Triton kernels, one file for each operator. Importing one needs triton."""
