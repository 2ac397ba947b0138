// What the library exports: the registration that ONNX Runtime calls, and what it holds, in words.
#include <memory>
#include <string>

#include "cuda.h"
#include "node.h"

namespace gr {
namespace {

std::vector<Entry> const& entries() {
  static std::vector<Entry> const all{fmInteraction(),
                                      fusedEmbedLayerNorm(),
                                      fusedSkipLayerNorm(),
                                      fusedSwish(),
                                      hierarchicalSequenceFusion(),
                                      hstuHierarchicalAttention(),
                                      interactionTritonFast(),
                                      sequenceRecommendationInteraction()};
  return all;
}

// An operator with its description, as ONNX Runtime keeps it for as long as the library is loaded.
struct Registered : api::OperatorDescription {
  Entry const* entry{nullptr};
  bool onGpu{false};
};

Registered const& registered(api::OperatorDescription const* description) {
  return *static_cast<Registered const*>(description);
}

Entry const& entryOf(api::OperatorDescription const* description) { return *registered(description).entry; }

// A node: the operator, and which inputs and outputs it has.
struct Kernel {
  Entry const& entry;
  std::vector<std::string> inputs, outputs;
  std::unique_ptr<Operator> operation;
};

// Runs `work`; what it refuses becomes a status that names the operator.
template <typename Work>
api::Status* guarded(char const* name, Work const& work) {
  std::string text = "gr.ml.infra " + std::string(name) + ": ";
  try {
    work();
    return nullptr;
  } catch (Refusal const& refusal) {
    return api::createStatus(ortTable, api::kInvalidArgument, (text + refusal.what()).c_str());
  } catch (std::exception const& error) {
    return api::createStatus(ortTable, api::kFail, (text + error.what()).c_str());
  }
}

api::Status* create(api::OperatorDescription const* description, api::Table, api::KernelInfo const* info, void** kernel) {
  Entry const& entry = entryOf(description);
  return guarded(entry.signature.name, [&] {
    Attributes const attributes(info);
    auto made = std::make_unique<Kernel>(Kernel{entry, attributes.names("inputs"), attributes.names("outputs"), nullptr});
    for (std::string const& input : made->inputs) entry.signature.input(input);
    made->operation = registered(description).onGpu ? makeCudaOperator(entry.signature.name, attributes)
                                                    : std::unique_ptr<Operator>(entry.make(attributes));
    *kernel = made.release();
  });
}

api::Status* compute(void* kernel, api::KernelContext* context) {
  auto const& made = *static_cast<Kernel const*>(kernel);
  return guarded(made.entry.signature.name,
                 [&] { made.operation->run(Run(made.entry.signature, made.inputs, made.outputs, context)); });
}

api::Status* infer(api::OperatorDescription const* description, api::ShapeContext* context) {
  Entry const& entry = entryOf(description);
  return guarded(entry.signature.name, [&] { entry.infer(Inference(context)); });
}

// Any number of inputs and outputs of any types: the node's attributes say which it has, and `Run` what they may be. So no
// type that a model may hold is refused before its body could have run it.
Registered describe(Entry const& entry, bool onGpu) {
  using Description = api::OperatorDescription const*;
  Registered result;
  result.entry = &entry;
  result.onGpu = onGpu;
  result.name = [](Description description) { return entryOf(description).signature.name; };
  result.provider = [](Description description) {
    return registered(description).onGpu ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  result.inputs = result.outputs = [](Description) -> size_t { return 1; };
  result.inputType = result.outputType = [](Description, size_t) -> int32_t { return api::kUndefined; };
  result.inputArity = result.outputArity = [](Description, size_t) -> int32_t { return api::kVariadic; };
  result.inputMemory = [](Description, size_t) -> int32_t { return 0; };
  result.leastInputs = result.leastOutputs = [](Description) -> int32_t { return 1; };
  result.inputsAlike = result.outputsAlike = [](Description) -> int32_t { return 0; };
  result.startVersion = [](Description) -> int32_t { return 1; };
  result.endVersion = [](Description) -> int32_t { return 1; };
  result.create = create;
  result.compute = compute;
  result.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  result.infer = infer;
  return result;
}

api::Domain* domain() {
  static api::Domain* const made = [] {
    static std::vector<Registered> const operators = [] {
      std::vector<Registered> all;
      for (Entry const& entry : entries()) all.push_back(describe(entry, false));
      // Without kernels for every GPU nothing is registered for one: a node then runs by the kernel for the CPU, since ONNX
      // Runtime does not come back to the body.
      for (Entry const& entry : entries()) {
        if (plugins().table != nullptr) all.push_back(describe(entry, true));
      }
      return all;
    }();
    api::Domain* fresh = nullptr;
    check(api::createDomain(ortTable, "gr.ml.infra", &fresh));
    for (Registered const& each : operators) check(api::addOperator(ortTable, fresh, &each));
    return fresh;
  }();
  return made;
}

template <typename Items, typename Write>
std::string joined(Items const& items, Write const& write) {
  std::string text;
  for (auto const& item : items) text += (text.empty() ? "" : ", ") + write(item);
  return text;
}

}  // namespace
}  // namespace gr

extern "C" {

#define GR_EXPORT __attribute__((visibility("default")))

// ONNX Runtime calls it: `SessionOptions.register_custom_ops_library(path)`.
GR_EXPORT gr::api::Status* RegisterCustomOps(gr::api::SessionOptions* options, gr::api::Base const* base) {
  using namespace gr;
  ortTable = base->table(api::kVersion);
  if (ortTable == nullptr) {
    api::Table const oldest = base->table(1);
    std::string const text =
        "gr.ml.infra: this library needs ONNX Runtime 1.18 or newer, here is " + std::string(base->runtimeVersion());
    return oldest == nullptr ? nullptr : api::createStatus(oldest, api::kFail, text.c_str());
  }
  return guarded("library", [&] {
    kernels();
    check(api::addDomain(ortTable, options, domain()));
  });
}

// Why nothing is registered for a GPU; empty where it is. It stays valid. Asks the CUDA driver.
GR_EXPORT char const* gr_ml_infra_onnxruntime_no_cuda() { return gr::plugins().reason.c_str(); }

// What the library holds, as JSON; it stays valid. `advised`: whether its kernels are faster here than the bodies, which those
// of plain vectors are not in attention.
GR_EXPORT char const* gr_ml_infra_onnxruntime_describe() {
  using namespace gr;
  static std::string const text = [] {
    std::string chosen;
    try {
      chosen = kernels().name;
    } catch (Refusal const&) {
      // Registration says why.
    }
    auto quoted = [](std::string const& value) { return '"' + value + '"'; };
    std::string const operators = joined(entries(), [&](Entry const& entry) {
      std::string const attributes =
          entry.modes.empty() ? "" : ", \"attributes\": {\"mode\": [" + joined(entry.modes, quoted) + "]}";
      return quoted(entry.signature.name) + ": {\"types\": [\"float32\", \"float16\", \"bfloat16\"]" + attributes + "}";
    });
    std::string const available = joined(availableKernels(), [&](Kernels const* one) { return quoted(one->name); });
    return "{\"version\": \"1\", \"api\": " + std::to_string(api::kVersion) + ", \"instructions\": " + quoted(chosen) +
           ", \"advised\": " + (chosen == "plain" ? "false" : "true") + ", \"available\": [" + available +
           "], \"operators\": {" + operators + "}}";
  }();
  return text.c_str();
}

}  // extern "C"
