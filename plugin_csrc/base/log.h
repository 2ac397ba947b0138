// Messages to TensorRT's logger, or to stderr while nobody has given one.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace gr {

using Severity = nvinfer1::ILogger::Severity;

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
void log(Severity severity, std::string const& text) noexcept;

}  // namespace gr
