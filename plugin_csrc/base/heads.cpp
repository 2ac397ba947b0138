#include "heads.h"

#include <algorithm>

namespace gr {
namespace {

constexpr int64_t kLargestHead = 256;

}  // namespace

HeldSize heldSize(int64_t size, int64_t valueSize, bool dense) {
  int64_t const larger = std::max(size, valueSize);
  bool const aligned = size % 16 == 0 && valueSize % 16 == 0 && dense;
  if (!aligned) {
    return {larger <= 64 ? 64 : 256, false};
  }
  return {larger <= 32 ? 32 : larger <= 64 ? 64 : larger <= 128 ? 128 : 256, true};
}

void checkHeads(Shapes::Expression width, int64_t heads, char const* name) {
  int64_t const known = Shapes::known(width);
  if (known < 0 || known % heads != 0 || known / heads > kLargestHead) {
    refuse("the last axis of ", name, " has to be known when the engine is built, ", heads, " heads of at most ", kLargestHead);
  }
}

}  // namespace gr
