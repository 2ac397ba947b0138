#include "norm_rows.h"

namespace gr {
namespace {

// As `pick` in norm_rows.py.
std::string kernelName(char const* type, int64_t width) {
  std::string const name = std::string("norm_rows.") + type;
  if (width % 16 != 0) {
    return name + ".any";
  }
  return name + (width <= 256 ? ".256" : width <= 1024 ? ".1024" : width <= 4096 ? ".4096" : ".wide");
}

}  // namespace

int32_t normOf(Node const& node) { return node.choice("norm", {"none", "layer", "rms"}); }

void launchNormRows(Run const& run, NormRows const& rows) {
  std::string const kernel = kernelName(run.type(), rows.width);
  Arguments arguments;
  arguments.pointer(rows.x);
  for (std::string const& name : {rows.bias, rows.skip, rows.gamma, rows.beta, rows.gate, rows.lengths}) {
    arguments.pointer(run.dataOr(name, rows.x));
  }
  arguments.pointer(rows.output).pointer(run.dataOr(rows.total, rows.x));
  arguments.int64(rows.rows).int32(rows.width).int32(rows.positions).float32(rows.epsilon).int32(rows.norm);
  arguments.int32(rows.xKind).int32(run.kind(rows.bias)).int32(run.kind(rows.skip));
  arguments.int32(run.kind(rows.gamma)).int32(run.kind(rows.beta)).int32(run.has(rows.gate) ? rows.activation : 0);
  arguments.int32(run.integerKind(rows.lengths)).int32(run.makes(rows.total) ? 1 : 0);
  int64_t const programs = rows.width == 0 ? 0 : ceilDivide(rows.rows, findKernel(kernel).constant("ROWS"));
  run.launch(kernel, {programs}, arguments);
}

}  // namespace gr
