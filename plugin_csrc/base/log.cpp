#include "log.h"

#include <atomic>
#include <cstdio>

namespace gr {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

}  // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* given) noexcept { finder = given; }

void log(Severity severity, std::string const& text) noexcept {
  nvinfer1::ILoggerFinder* const found = finder;
  nvinfer1::ILogger* const logger = found == nullptr ? nullptr : found->findLogger();
  if (logger != nullptr) {
    logger->log(severity, text.c_str());
  } else if (severity <= Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

}  // namespace gr
