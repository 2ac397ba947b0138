#include "node.h"

#include <atomic>
#include <cstdlib>
#include <memory>

namespace gr {
namespace {

char const* nameOf(int32_t type) {
  static char const* const names[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                      "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                      "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
  return type >= 0 && type < static_cast<int32_t>(sizeof names / sizeof *names) ? names[type] : "another type";
}

bool isFloat(int32_t type) { return type == api::kFloat || type == api::kHalf || type == api::kBfloat; }

void requireType(Input const& input, std::string const& name, int32_t type) {
  bool const fits = input.role == Role::kIntegers ? type == api::kInt32 || type == api::kInt64
                                                  : isFloat(type) || (input.role == Role::kMask && type == api::kBool);
  if (!fits) {
    static char const* const allowed[] = {"float32, float16 or bfloat16", "bool, float32, float16 or bfloat16",
                                          "int32 or int64"};
    throw Refusal("input " + name + " is " + nameOf(type) + "; it must be " + allowed[static_cast<int32_t>(input.role)]);
  }
}

// Releases what ONNX Runtime gave.
struct Release {
  void operator()(api::TensorInfo* info) const { api::releaseTensorInfo(ortTable, info); }
};

std::string list(std::vector<std::string> const& parts, char const* between) {
  std::string text;
  for (std::string const& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

std::string listed(Sizes const& sizes, char const* between) {
  std::vector<std::string> parts;
  for (int64_t size : sizes) parts.push_back(std::to_string(size));
  return list(parts, between);
}

}  // namespace

api::Table ortTable;

void check(api::Status* status) {
  if (status == nullptr) return;
  std::string const text = api::statusMessage(ortTable, status);
  api::releaseStatus(ortTable, status);
  throw Refusal(text);
}

Input const& Signature::input(std::string const& present) const {
  for (Input const& item : inputs) {
    std::string_view const known = item.name;
    bool const many = known.back() == '*';
    if (many ? present.compare(0, known.size() - 1, known.substr(0, known.size() - 1)) == 0 : present == known) return item;
  }
  throw Refusal("attribute inputs names '" + present + "', which is no input of it");
}

int64_t Attributes::integer(char const* name) const {
  int64_t value = 0;
  check(api::attributeInt(ortTable, mInfo, name, &value));
  return value;
}

float Attributes::number(char const* name) const {
  float value = 0;
  check(api::attributeFloat(ortTable, mInfo, name, &value));
  return value;
}

std::string Attributes::text(char const* name) const {
  size_t size = 0;
  check(api::attributeString(ortTable, mInfo, name, nullptr, &size));
  std::string text(size, '\0');
  check(api::attributeString(ortTable, mInfo, name, text.data(), &size));
  return text.substr(0, text.find('\0'));
}

std::vector<int64_t> Attributes::integers(char const* name) const {
  size_t size = 0;
  check(api::attributeInts(ortTable, mInfo, name, nullptr, &size));
  std::vector<int64_t> values(size);
  check(api::attributeInts(ortTable, mInfo, name, values.data(), &size));
  return values;
}

std::vector<float> Attributes::numbers(char const* name) const {
  size_t size = 0;
  check(api::attributeFloats(ortTable, mInfo, name, nullptr, &size));
  std::vector<float> values(size);
  check(api::attributeFloats(ortTable, mInfo, name, values.data(), &size));
  return values;
}

std::vector<std::string> Attributes::names(char const* name) const { return split(text(name)); }

int32_t Attributes::choice(char const* name, std::vector<char const*> const& choices) const {
  std::string const value = text(name);
  auto const found = std::find(choices.begin(), choices.end(), value);
  if (found == choices.end()) {
    std::string const allowed = list({choices.begin(), choices.end()}, " or ");
    throw Refusal("attribute " + std::string(name) + " is '" + value + "'; it must be " + allowed);
  }
  return static_cast<int32_t>(found - choices.begin());
}

std::vector<std::string> split(std::string const& text) {
  std::vector<std::string> parts;
  for (size_t start = 0; start < text.size();) {
    size_t const end = std::min(text.find(',', start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

int64_t Tensor::elements() const {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

Operand Tensor::operand() const {
  Element const element = type == api::kHalf     ? Element::kFloat16
                          : type == api::kBfloat ? Element::kBfloat16
                          : type == api::kBool   ? Element::kBool
                                                 : Element::kFloat32;
  return {data, element};
}

std::string described(Tensor const& tensor) { return "[" + listed(tensor.sizes, ", ") + "]"; }

Run::Run(Signature const& signature, std::vector<std::string> const& inputs, std::vector<std::string> const& outputs,
         api::KernelContext* context)
    : mNames(inputs), mOutputs(outputs), mInputs(inputs.size()), mContext(context) {
  size_t count = 0;
  check(api::inputCount(ortTable, context, &count));
  if (count != inputs.size()) {
    throw Refusal("attribute inputs names " + std::to_string(inputs.size()) + " inputs, the node has " + std::to_string(count));
  }
  check(api::outputCount(ortTable, context, &count));
  if (count != outputs.size()) {
    throw Refusal("attribute outputs names " + std::to_string(outputs.size()) + " outputs, the node has " +
                  std::to_string(count));
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    api::Value const* value = nullptr;
    check(api::input(ortTable, context, i, &value));
    if (value == nullptr) throw Refusal("input " + inputs[i] + " is absent, attribute inputs names it");
    api::TensorInfo* info = nullptr;
    check(api::tensorInfo(ortTable, value, &info));
    std::unique_ptr<api::TensorInfo, Release> const owner(info);
    Tensor& tensor = mInputs[i];
    size_t rank = 0;
    check(api::rank(ortTable, info, &rank));
    tensor.sizes.resize(rank);
    check(api::sizes(ortTable, info, tensor.sizes.data(), rank));
    check(api::elementType(ortTable, info, &tensor.type));
    requireType(signature.input(inputs[i]), inputs[i], tensor.type);
    void* data = nullptr;
    check(api::tensorData(ortTable, value, &data));
    // A tensor without elements may have no memory, but it is there.
    static float const nothing = 0;
    tensor.data = data == nullptr ? &nothing : data;
  }
}

Tensor const* Run::find(std::string_view name) const {
  auto const found = std::find(mNames.begin(), mNames.end(), name);
  return found == mNames.end() ? nullptr : &mInputs[static_cast<size_t>(found - mNames.begin())];
}

bool Run::makes(std::string_view output) const { return std::find(mOutputs.begin(), mOutputs.end(), output) != mOutputs.end(); }

Tensor const& Run::input(std::string_view name) const {
  Tensor const* const found = find(name);
  if (found == nullptr) throw Refusal("input " + std::string(name) + " is absent");
  return *found;
}

Tensor const& Run::input(std::string_view name, size_t rank) const {
  Tensor const& found = input(name);
  if (found.sizes.size() != rank) {
    throw Refusal("input " + std::string(name) + " is " + described(found) + "; it must have " + std::to_string(rank) +
                  " axes");
  }
  return found;
}

void Run::require(std::string_view name, Allowed const& allowed) const {
  Tensor const& found = input(name);
  bool fits = found.sizes.size() == allowed.size();
  for (size_t i = 0; fits && i < allowed.size(); ++i) {
    fits = std::find(allowed[i].begin(), allowed[i].end(), found.sizes[i]) != allowed[i].end();
  }
  if (fits) return;
  std::vector<std::string> axes;
  for (auto axis : allowed) {
    axis.erase(std::unique(axis.begin(), axis.end()), axis.end());
    axes.push_back(listed(axis, " or "));
  }
  throw Refusal("input " + std::string(name) + " is " + described(found) + "; it must be [" + list(axes, ", ") + "]");
}

Operand Run::optional(std::string_view name, Sizes const& sizes) const {
  if (!has(name)) return {nullptr, Element::kFloat32};
  Allowed allowed;
  for (int64_t size : sizes) allowed.push_back({size});
  require(name, allowed);
  return input(name).operand();
}

Plane Run::plane(std::string_view name, Sizes const& sizes) const {
  if (!has(name)) return {{nullptr, Element::kFloat32}, 0, 0, 0, 0};
  Allowed allowed;
  for (int64_t size : sizes) allowed.push_back({1, size});
  require(name, allowed);
  Tensor const& found = input(name);
  int64_t strides[4];
  int64_t step = 1;
  for (size_t axis = 4; axis-- > 0; step *= found.sizes[axis]) strides[axis] = found.sizes[axis] == 1 ? 0 : step;
  return {found.operand(), strides[0], strides[1], strides[2], strides[3]};
}

Target Run::output(std::string_view name, Sizes const& sizes, int32_t type) const {
  auto const found = std::find(mOutputs.begin(), mOutputs.end(), name);
  Tensor tensor;
  tensor.type = type;
  Element const element = tensor.operand().element;
  if (found == mOutputs.end()) return {nullptr, element};
  api::Value* value = nullptr;
  check(api::output(ortTable, mContext, static_cast<size_t>(found - mOutputs.begin()), sizes.data(), sizes.size(), &value));
  void* data = nullptr;
  check(api::tensorData(ortTable, value, &data));
  return {data, element};
}

void* Run::stream() const {
  void* found = nullptr;
  check(api::stream(ortTable, mContext, &found));
  return found;
}

void Run::parallel(int64_t count, int64_t floats, std::function<void(int64_t, float*)> const& work) const {
  struct Shared {
    std::function<void(int64_t, float*)> const& work;
    size_t bytes;
    std::atomic<bool> exhausted{false};
  } shared{work, (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64};
  auto const step = [](void* data, size_t index) {
    auto& given = *static_cast<Shared*>(data);
    // No exception may leave a thread that is not ours.
    void* const scratch = given.bytes == 0 ? nullptr : std::aligned_alloc(64, given.bytes);
    if (scratch == nullptr && given.bytes != 0) {
      given.exhausted = true;
      return;
    }
    given.work(static_cast<int64_t>(index), static_cast<float*>(scratch));
    std::free(scratch);
  };
  if (count == 1) {
    step(&shared, 0);
  } else if (count > 1) {
    // As many batches as calls: whoever is free takes the next.
    check(api::parallelFor(ortTable, mContext, step, static_cast<size_t>(count), static_cast<size_t>(count), &shared));
  }
  if (shared.exhausted) throw Refusal("no memory for " + std::to_string(shared.bytes) + " bytes of scratch");
}

DeviceMemory::DeviceMemory(Run const& run, size_t bytes) {
  if (bytes == 0) return;
  api::Value const* value = nullptr;
  check(api::input(ortTable, run.mContext, 0, &value));
  api::MemoryInfo const* place = nullptr;
  check(api::memoryInfo(ortTable, value, &place));
  check(api::allocator(ortTable, run.mContext, place, &mAllocator));
  api::Status* const status = api::streamMemory(ortTable, run.mContext, place, bytes, &mData);
  if (status != nullptr) api::releaseAllocator(ortTable, mAllocator);
  check(status);
}

DeviceMemory::~DeviceMemory() {
  if (mAllocator == nullptr) return;
  api::Status* const status = api::freeMemory(ortTable, mAllocator, mData);
  if (status != nullptr) api::releaseStatus(ortTable, status);
  api::releaseAllocator(ortTable, mAllocator);
}

KnownTensor KnownTensor::axes(std::initializer_list<size_t> kept) const {
  KnownTensor result{type, {}, {}};
  for (size_t axis : kept) {
    bool const known = axis < sizes.size();
    result.append(known ? sizes[axis] : -1, known ? symbols[axis] : "");
  }
  return result;
}

KnownTensor& KnownTensor::append(int64_t size, std::string const& symbol) {
  sizes.push_back(size);
  symbols.push_back(symbol);
  return *this;
}

Inference::Inference(api::ShapeContext* context)
    : mContext(context), mNames(split(text("inputs"))), mOutputs(split(text("outputs"))) {
  size_t count = 0;
  check(api::inferredInputCount(ortTable, context, &count));
  if (count != mNames.size()) {
    throw Refusal("attribute inputs names " + std::to_string(mNames.size()) + " inputs, the node has " + std::to_string(count));
  }
}

std::string Inference::text(char const* attribute) const {
  void const* found = nullptr;
  check(api::inferredAttribute(ortTable, mContext, attribute, &found));
  size_t size = 0;
  std::string text(256, '\0');
  api::Status* status = api::readAttribute(ortTable, found, api::kString, text.data(), text.size(), &size);
  if (status != nullptr && size > text.size()) {
    api::releaseStatus(ortTable, status);
    text.assign(size, '\0');
    status = api::readAttribute(ortTable, found, api::kString, text.data(), text.size(), &size);
  }
  check(status);
  text.resize(size);  // no version of ONNX Runtime is sure to end it with a zero, some count one
  return text.substr(0, text.find('\0'));
}

int64_t Inference::integer(char const* attribute) const {
  void const* found = nullptr;
  check(api::inferredAttribute(ortTable, mContext, attribute, &found));
  int64_t value = 0;
  size_t size = 0;
  check(api::readAttribute(ortTable, found, api::kInt, &value, sizeof value, &size));
  return value;
}

bool Inference::has(std::string_view input) const { return std::find(mNames.begin(), mNames.end(), input) != mNames.end(); }

KnownTensor Inference::input(std::string_view name) const {
  auto const place = std::find(mNames.begin(), mNames.end(), name);
  if (place == mNames.end()) throw Refusal("input " + std::string(name) + " is absent");
  api::TensorInfo* info = nullptr;
  check(api::inferredInput(ortTable, mContext, static_cast<size_t>(place - mNames.begin()), &info));
  KnownTensor result;
  if (info == nullptr) return result;
  check(api::elementType(ortTable, info, &result.type));
  size_t rank = 0;
  check(api::rank(ortTable, info, &rank));
  result.sizes.resize(rank);
  std::vector<char const*> symbols(rank);
  check(api::sizes(ortTable, info, result.sizes.data(), rank));
  check(api::symbols(ortTable, info, symbols.data(), rank));
  for (char const* symbol : symbols) result.symbols.emplace_back(symbol == nullptr ? "" : symbol);
  return result;
}

void Inference::output(std::string_view name, KnownTensor const& tensor) const {
  auto const place = std::find(mOutputs.begin(), mOutputs.end(), name);
  if (place == mOutputs.end()) return;
  api::TensorInfo* info = nullptr;
  check(api::createTensorInfo(ortTable, &info));
  std::unique_ptr<api::TensorInfo, Release> const owner(info);
  check(api::setElementType(ortTable, info, tensor.type));
  std::vector<char const*> symbols;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) symbols.push_back(tensor.sizes[i] < 0 ? tensor.symbols[i].c_str() : "");
  check(api::setSizes(ortTable, info, tensor.sizes.data(), tensor.sizes.size()));
  check(api::setSymbols(ortTable, info, symbols.data(), symbols.size()));
  check(api::setInferredOutput(ortTable, mContext, static_cast<size_t>(place - mOutputs.begin()), info));
}

}  // namespace gr
