// What the kernels take and are called by. They are compiled once for each set of instructions and know nothing of ONNX
// Runtime. Sizes and strides count elements; the stride along a broadcast axis is 0. Tensors are dense.
//
// Each kernel is given `scratch`, aligned memory of as many floats as its `...Scratch` function says.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gr {

enum class Element : int32_t { kFloat32, kFloat16, kBfloat16, kBool };

struct Operand {
  void const* data;  // null where it is absent
  Element element;
};

struct Target {
  void* data;
  Element element;
};

struct Plane {  // [batch, head, row, column]
  Operand operand;
  int64_t batch, head, row, column;
};

enum class Norm : int32_t { kNone, kLayer, kRms, kGroup };
enum class Gate : int32_t { kNone, kSilu, kSigmoid };

// HSTUHierarchicalAttention, one sample's rows [row, end) of all heads.
struct Hstu {
  int64_t batches, length, heads, size, valueSize;
  Operand q, k, v, u, gamma, beta, scale;
  int64_t scaleBatch, scaleRow;
  Plane bias, mask;
  void const* lengths;
  bool wideLengths;      // int64
  int64_t lengthsBatch;  // stride
  float alpha;
  bool biasInsideAlpha;
  float inverseLength, epsilon;
  bool causal;
  Norm norm;                       // none, layer or group
  bool gammaOfHeads, betaOfHeads;  // [heads], not [heads * valueSize]
  Gate gate;
  int64_t levels;  // 0: SiLU
  float decay;
  // By `hstuExtents`: [batch, head, group of rows, block of keys] of the mask and of the bias. Null: nothing is left out.
  uint8_t const *maskExtents, *biasExtents;
  Target y;
};
constexpr int64_t kGroupRows = 6;   // rows that a kernel works on at a time
constexpr int64_t kBlockKeys = 64;  // keys that a kernel works on at a time
constexpr uint8_t kAllOnes = 0x80;  // of an extent: all that it covers are 1
// A score this low has a weight of 0, even where half as much is added to it.
constexpr float kNoWeight = -1e4F;

// InteractionTritonFast, samples [begin, end).
struct Interaction {
  int64_t features, size;
  Operand const* feature;  // [features]; sample s of one begins `stride` elements after s - 1
  int64_t const* stride;
  int64_t width;    // of a row of y
  int64_t first;    // where the products stand in it
  int64_t denseAt;  // where feature 0 stands in it, or -1
  bool lower, self;
  Target y;
};

// norm(sum of rows), rows [begin, end): FusedSkipLayerNorm and FusedEmbedLayerNorm.
struct Term {
  Operand rows;
  int64_t stride;                 // elements from one row to the next; 0: the same row for all
  void const* ids;                // null, or which row, for each position
  bool wideIds;                   // int64
  int64_t idsBatch, idsPosition;  // strides
  int64_t count;                  // rows there are to choose from
};
struct NormSum {
  int64_t width, positions;  // positions of a batch
  Term const* terms;
  int64_t termCount;
  Norm norm;
  float epsilon;
  Operand gamma, beta;
  Target output, sum;  // sum.data may be null
};

// FusedSwish, elements [begin, end).
struct Swish {
  Operand x;
  float beta;
  Target output;
};

// FMInteraction, samples [begin, end).
struct Fm {
  int64_t features, size;
  Operand e;
  bool reduce;
  Target output;
};

// HierarchicalSequenceFusion, positions [begin, end) of all samples.
struct Fusion {
  int64_t positions, width, levels;
  Operand x, embeddings, mask;
  int64_t maskBatch, maskPosition, maskLevel;
  float temperature;
  int64_t const* windows;
  float const* windowWeights;
  int64_t windowCount;
  bool countsPadding;
  Target y, weights;  // weights.data may be null
};

// SequenceRecommendationInteraction; outputs whose data is null are not made.
struct Sequence {
  int64_t positions, size;
  Operand items, user, timeWeights, mask;
  int64_t shortWindow;
  float decay;
  bool normalize;
  Target scores, shortTerm, longTerm, cooccurrence;
};

struct Kernels {
  char const* name;
  int64_t (*hstuScratch)(Hstu const&, int64_t rows);
  void (*hstu)(Hstu const&, int64_t batch, int64_t row, int64_t end, float* scratch);
  // The extents of groups [begin, end), counted over all batches and heads of the mask or the bias.
  void (*hstuExtents)(Hstu const&, bool ofBias, int64_t begin, int64_t end, uint8_t* extents);
  // The greatest square of the length of a head's vector in rows [begin, end) of q or k; infinity where one is NaN.
  float (*hstuSquare)(Operand const&, int64_t size, int64_t begin, int64_t end, float* scratch);
  int64_t (*interactionScratch)(Interaction const&);
  void (*interaction)(Interaction const&, int64_t begin, int64_t end, float* scratch);
  int64_t (*normSumScratch)(NormSum const&);
  void (*normSum)(NormSum const&, int64_t begin, int64_t end, float* scratch);
  void (*swish)(Swish const&, int64_t begin, int64_t end);
  int64_t (*fmScratch)(Fm const&);
  void (*fm)(Fm const&, int64_t begin, int64_t end, float* scratch);
  int64_t (*fusionScratch)(Fusion const&);
  void (*fusion)(Fusion const&, int64_t begin, int64_t end, float* scratch);
  int64_t (*sequenceScratch)(Sequence const&);
  void (*interests)(Sequence const&, int64_t batch, float* scratch);  // scores, short_term, long_term
  void (*cooccurrence)(Sequence const&, int64_t batch, int64_t row, int64_t end, float* scratch);
};

extern "C" Kernels const plainKernels, avx2Kernels, avx512Kernels;

}  // namespace gr
