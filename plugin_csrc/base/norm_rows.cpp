#include "norm_rows.h"

#include <algorithm>
#include <array>

namespace gr {
namespace {

// As `pick` in norm_rows.py.
std::string kernelName(Run const& run, int64_t width) {
  static constexpr std::array<int64_t, 6> kHeld{128, 256, 512, 1024, 2048, 4096};
  std::string const name = std::string("norm_rows.") + run.type();
  if (width % run.vector() != 0 || !run.aligned()) {
    return name + ".any";
  }
  auto const held = std::lower_bound(kHeld.begin(), kHeld.end(), width);
  return name + "." + (held == kHeld.end() ? "wide" : std::to_string(*held));
}

}  // namespace

int32_t normOf(Node const& node) { return node.choice("norm", {"none", "layer", "rms"}); }

void launchNormRows(Run const& run, NormRows const& rows) {
  KernelVariant const& kernel = findKernel(kernelName(run, rows.width));
  Arguments arguments;
  arguments.pointer(rows.x);
  for (std::string const& name : {rows.bias, rows.skip, rows.gamma, rows.beta, rows.gate, rows.lengths}) {
    arguments.pointer(run.dataOr(name, rows.x));
  }
  arguments.pointer(rows.output).pointer(run.dataOr(rows.total, rows.x));
  arguments.integer(rows.rows)
      .integer(rows.width)
      .integer(rows.positions)
      .integer(run.strideOf(rows.lengths, 0))
      .float32(rows.epsilon)
      .integer(rows.norm);
  arguments.integer(rows.xKind).integer(run.kind(rows.bias)).integer(run.kind(rows.skip));
  arguments.integer(run.kind(rows.gamma)).integer(run.kind(rows.beta)).integer(run.has(rows.gate) ? rows.activation : 0);
  arguments.integer(run.integerKind(rows.lengths)).integer(run.makes(rows.total) ? 1 : 0);
  int64_t const programs = rows.width == 0 ? 0 : ceilDivide(rows.rows, kernel.constant("ROWS"));
  run.launch(kernel, {programs}, arguments);
}

}  // namespace gr
