#include "linear.h"

#include "norm_rows.h"

namespace gr {
namespace {

constexpr int64_t kHeldColumns = 512;  // of a row, which the kernel can normalise itself
constexpr int64_t kColumns = 128;

bool isWide(int64_t inner, int64_t width, int32_t norm) {
  return inner % 16 == 0 && width % 16 == 0 && norm != 0 && width > kColumns && width <= kHeldColumns;
}

// As `pick` in linear.py.
std::string kernelName(Run const& run, Linear const& linear) {
  bool const wide = isWide(linear.inner, linear.width, linear.norm);
  // Where the wide one is right for aligned tensors there is no workspace for the two launches of another.
  bool const needed = wide && run.output(linear.output).type != nvinfer1::DataType::kFLOAT;
  bool const aligned = (run.aligned() || needed) && linear.inner % 16 == 0 && linear.width % 16 == 0;
  return std::string("linear.") + run.type() + (!aligned ? ".any" : wide ? ".h512" : ".h128");
}

}  // namespace

void checkWeight(Shapes const& shapes, char const* name) {
  nvinfer1::DimsExprs const& weight = shapes.input(name);
  if (Shapes::known(weight.d[0]) < 0 || Shapes::known(weight.d[1]) < 0) {
    refuse("both axes of input ", name, " have to be known when the engine is built");
  }
}

size_t linearWorkspace(nvinfer1::DataType type, int64_t rows, int64_t inner, int64_t width, int32_t norm) {
  bool const twice = norm != 0 && width > kColumns && !isWide(inner, width, norm);
  bool const needed = twice && type != nvinfer1::DataType::kFLOAT;
  return needed ? static_cast<size_t>(rows * width) * sizeof(float) : 0;
}

void launchLinear(Run const& run, Linear const& linear, void* workspace) {
  KernelVariant const& kernel = findKernel(kernelName(run, linear));
  Tensor const& output = run.output(linear.output);
  bool const twice = linear.norm != 0 && linear.width > kernel.constant("COLUMNS");
  bool const wide = twice && output.type != nvinfer1::DataType::kFLOAT;
  void* const z = wide ? workspace : output.data;
  bool const makesTotal = run.makes(linear.total);
  Arguments arguments;
  arguments.pointer(linear.x).pointer(run.input(linear.weight).data);
  for (std::string const& name : {linear.bias, linear.residual, linear.gamma, linear.beta}) {
    arguments.pointer(run.dataOr(name, linear.x));
  }
  arguments.pointer(z).pointer(run.dataOr(linear.total, linear.x));
  arguments.integer(linear.rows).integer(linear.inner).integer(linear.width).float32(linear.epsilon);
  arguments.integer(twice ? 0 : linear.norm).integer(run.kind(linear.bias)).integer(run.kind(linear.residual));
  arguments.integer(run.kind(linear.gamma)).integer(run.kind(linear.beta)).integer(wide ? 2 : 1);
  arguments.integer(makesTotal && !twice ? 1 : 0);
  int64_t const programs = linear.width == 0 ? 0
                                             : ceilDivide(linear.rows, kernel.constant("ROWS")) *
                                                   ceilDivide(linear.width, kernel.constant("COLUMNS"));
  run.launch(kernel, {programs}, arguments);
  if (twice) {
    NormRows rows{linear.rows, linear.width, linear.norm, linear.epsilon, z, output.data};
    rows.xKind = wide ? 2 : 1;
    rows.gamma = linear.gamma;
    rows.beta = linear.beta;
    rows.total = linear.total;
    launchNormRows(run, rows);
  }
}

}  // namespace gr
