# Compiles what every source of the library includes once: given to CMake as CMAKE_PROJECT_INCLUDE.
cmake_language(DEFER CALL target_precompile_headers plugins PRIVATE base/operator.h base/kernels.h)
