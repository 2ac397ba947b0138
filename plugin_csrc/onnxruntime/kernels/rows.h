// What works row by row: FusedSkipLayerNorm, FusedEmbedLayerNorm, FusedSwish, HierarchicalSequenceFusion.
#pragma once

#include "vectors.h"

namespace gr {
namespace {

int64_t normSumScratch(NormSum const& a) { return 4 * padded(a.width); }

INLINE int64_t chosen(Term const& term, int64_t positions, int64_t row) {
  if (term.ids == nullptr) return row;
  int64_t const at = row / positions * term.idsBatch + row % positions * term.idsPosition;
  int64_t const id = term.wideIds ? static_cast<int64_t const*>(term.ids)[at] : static_cast<int32_t const*>(term.ids)[at];
  return id < 0 ? id + term.count : id;
}

void normSum(NormSum const& a, int64_t begin, int64_t end, float* scratch) {
  int64_t const width = padded(a.width);
  float *const total = scratch, *const room = total + width, *const gamma = room + width, *const beta = gamma + width;
  if (a.gamma.data != nullptr) copyRow(a.gamma, 0, a.width, gamma);
  if (a.beta.data != nullptr) copyRow(a.beta, 0, a.width, beta);
  for (int64_t row = begin; row < end; ++row) {
    copyRow(a.terms[0].rows, chosen(a.terms[0], a.positions, row) * a.terms[0].stride, a.width, total);
    for (int64_t term = 1; term < a.termCount; ++term) {
      copyRow(a.terms[term].rows, chosen(a.terms[term], a.positions, row) * a.terms[term].stride, a.width, room);
      for (int64_t i = 0; i < width; i += LANES) store(total + i, load(total + i) + load(room + i));
    }
    if (a.sum.data != nullptr) writeRow(total, a.width, a.sum, row * a.width);
    normalise(total, a.width, a.norm, a.epsilon, a.gamma.data ? gamma : nullptr, a.beta.data ? beta : nullptr);
    writeRow(total, a.width, a.output, row * a.width);
  }
}

void swish(Swish const& a, int64_t begin, int64_t end) {
  alignas(64) float x[256];
  for (int64_t at = begin; at < end; at += 256) {
    int64_t const count = smaller(256, end - at);
    copyRow(a.x, at, count, x);
    for (int64_t i = 0; i < count; i += LANES) {
      Vector const value = load(x + i);
      store(x + i, value * sigmoid(value * a.beta));
    }
    writeRow(x, count, a.output, at);
  }
}

int64_t fusionScratch(Fusion const& a) { return (a.levels + 4) * padded(a.width) + 2 * padded(a.levels); }

void fusion(Fusion const& a, int64_t begin, int64_t end, float* scratch) {
  int64_t const width = padded(a.width), levels = padded(a.levels);
  float *const embeddings = scratch, *const x = embeddings + a.levels * width, *const mixed = x + width;
  float *const window = mixed + width, *const room = window + width, *const weights = room + width,
               *const mask = weights + levels;
  for (int64_t l = 0; l < a.levels; ++l) copyRow(a.embeddings, l * a.width, a.width, embeddings + l * width);
  for (int64_t at = begin; at < end; ++at) {
    int64_t const batch = at / a.positions, position = at % a.positions;
    copyRow(a.x, at * a.width, a.width, x);
    float most = -3.4028234e38F;
    for (int64_t l = 0; l < a.levels; ++l) {
      mask[l] =
          a.mask.data == nullptr ? 1.F : number(a.mask, batch * a.maskBatch + position * a.maskPosition + l * a.maskLevel);
      if (mask[l] == 0.F) continue;
      weights[l] = product(x, embeddings + l * width, a.width) / a.temperature;
      most = weights[l] > most ? weights[l] : most;
    }
    for (int64_t l = 0; l < levels; ++l) weights[l] = l < a.levels && mask[l] != 0.F ? weights[l] - most : -__builtin_inff();
    Vector total{};
    for (int64_t l = 0; l < levels; l += LANES) {
      Vector const score = load(weights + l), power = score == -__builtin_inff() ? Vector{} : exponential(score);
      store(weights + l, power);
      total += power;
    }
    float const all = sum(total), inverse = all == 0.F ? 0.F : 1.F / all;
    for (int64_t l = 0; l < levels; l += LANES) store(weights + l, load(weights + l) * inverse);
    memset(mixed, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t l = 0; l < a.levels; ++l) {
      if (mask[l] == 0.F) continue;
      for (int64_t i = 0; i < width; i += LANES)
        store(mixed + i, load(mixed + i) + load(embeddings + l * width + i) * weights[l]);
    }
    Vector const overlap = Vector{} + product(mixed, x, a.width) / static_cast<float>(a.width);
    float const gate = sigmoid(overlap)[0];
    for (int64_t i = 0; i < width; i += LANES) store(mixed + i, load(mixed + i) * gate + load(x + i) * (1.F - gate));
    for (int64_t k = 0; k < a.windowCount; ++k) {
      int64_t const half = a.windows[k] / 2, left = smaller(half, position), right = smaller(half, a.positions - 1 - position);
      memset(window, 0, static_cast<size_t>(width) * sizeof(float));
      for (int64_t near = at - left; near <= at + right; ++near) {
        copyRow(a.x, near * a.width, a.width, room);
        for (int64_t i = 0; i < width; i += LANES) store(window + i, load(window + i) + load(room + i));
      }
      float const share = a.windowWeights[k] / static_cast<float>(a.countsPadding ? a.windows[k] : left + right + 1);
      for (int64_t i = 0; i < width; i += LANES) store(mixed + i, load(mixed + i) + load(window + i) * share);
    }
    writeRow(mixed, a.width, a.y, at * a.width);
    if (a.weights.data != nullptr) writeRow(weights, a.levels, a.weights, at * a.levels);
  }
}

}  // namespace
}  // namespace gr
