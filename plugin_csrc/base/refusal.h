// What the library says no with. It never leaves the library: the plugin's methods catch it, log it and return a failure.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace gr {

class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws a Refusal whose text is the parts written one after the other.
template <typename... Parts>
[[noreturn]] void refuse(Parts const&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refusal(text.str());
}

}  // namespace gr
