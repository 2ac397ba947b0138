// Messages to TensorRT's logger, or to stderr where TensorRT has given none (TensorRT-RTX 1.7 gives none while it parses).
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace gr {

using Severity = nvinfer1::ILogger::Severity;

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
void log(Severity severity, std::string const& text) noexcept;

// A function of the TensorRT that this process has loaded, whichever that is; null where there is none. Python loads TensorRT
// out of sight of dlsym.
void* findInTensorRT(char const* function) noexcept;

}  // namespace gr
