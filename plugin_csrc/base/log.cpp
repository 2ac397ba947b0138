#include "log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace gr {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

}  // namespace

void* findInTensorRT(char const* function) noexcept {
  for (char const* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1"}) {
    void* const library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    void* const found = library == nullptr ? nullptr : dlsym(library, function);
    if (found != nullptr) {
      return found;
    }
  }
  return nullptr;
}

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
