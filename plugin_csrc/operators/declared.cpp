// Written by docs/generate.py from the operators' declarations in patterns/.
// clang-format off
#include "base/declaration.h"
#include "base/refusal.h"

namespace gr {

Declaration const& declarationOf(std::string_view name) {
  static std::vector<Declaration> const all = {
    {"FMInteraction",
     {
      {"E", Role::kData, false, {{"[B, F, D]", false, {{{"B"}, 0, false}, {{"F"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, "reduce", "0"}, {"[B, 1]", false, {{{"B"}, 0, false}, {{}, 1, false}}, "reduce", "1"}}},
     },
     {}, {}},
    {"FusedAttentionLayerNorm",
     {
      {"query", Role::kData, false, {{"[B, Sq, h*d]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"h", "d"}, 0, false}}, "layout", "BSH"}, {"[B, h, Sq, d]", false, {{{"B"}, 0, false}, {{"h"}, 0, false}, {{"Sq"}, 0, false}, {{"d"}, 0, false}}, "layout", "BHSD"}}},
      {"key", Role::kData, false, {{"[B, Sk, hkv*d]", false, {{{"B"}, 0, false}, {{"Sk"}, 0, false}, {{"hkv", "d"}, 0, false}}, "layout", "BSH"}, {"[B, hkv, Sk, d]", false, {{{"B"}, 0, false}, {{"hkv"}, 0, false}, {{"Sk"}, 0, false}, {{"d"}, 0, false}}, "layout", "BHSD"}}},
      {"value", Role::kData, false, {{"[B, Sk, hkv*dv]", false, {{{"B"}, 0, false}, {{"Sk"}, 0, false}, {{"hkv", "dv"}, 0, false}}, "layout", "BSH"}, {"[B, hkv, Sk, dv]", false, {{{"B"}, 0, false}, {{"hkv"}, 0, false}, {{"Sk"}, 0, false}, {{"dv"}, 0, false}}, "layout", "BHSD"}}},
      {"attention_bias", Role::kAffine, true, {{"[1|B, 1|h, 1|Sq, 1|Sk]", false, {{{"B"}, 0, true}, {{"h"}, 0, true}, {{"Sq"}, 0, true}, {{"Sk"}, 0, true}}, nullptr, nullptr}}},
      {"mask", Role::kBool, true, {{"[1|B, 1|h, 1|Sq, 1|Sk]", false, {{{"B"}, 0, true}, {{"h"}, 0, true}, {{"Sq"}, 0, true}, {{"Sk"}, 0, true}}, nullptr, nullptr}}},
      {"out_weight", Role::kData, true, {{"[h*dv, Ho]", false, {{{"h", "dv"}, 0, false}, {{"Ho"}, 0, false}}, nullptr, nullptr}}},
      {"out_bias", Role::kAffine, true, {{"[Ho]", false, {{{"Ho"}, 0, false}}, "out_weight", "given"}, {"[h*dv]", false, {{{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
      {"residual", Role::kData, true, {{"[B, Sq, Ho]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"Ho"}, 0, false}}, "out_weight", "given"}, {"[B, Sq, h*dv]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
      {"gamma", Role::kAffine, true, {{"[Ho]", false, {{{"Ho"}, 0, false}}, "out_weight", "given"}, {"[h*dv]", false, {{{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
      {"beta", Role::kAffine, true, {{"[Ho]", false, {{{"Ho"}, 0, false}}, "out_weight", "given"}, {"[h*dv]", false, {{{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
     },
     {
      {"output", Role::kData, false, {{"[B, Sq, Ho]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"Ho"}, 0, false}}, "out_weight", "given"}, {"[B, Sq, h*dv]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
      {"residual_sum", Role::kData, true, {{"[B, Sq, Ho]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"Ho"}, 0, false}}, "out_weight", "given"}, {"[B, Sq, h*dv]", false, {{{"B"}, 0, false}, {{"Sq"}, 0, false}, {{"h", "dv"}, 0, false}}, "out_weight", "absent"}}},
     },
     {{"h", "num_heads"}, {"hkv", "num_key_value_heads"}}, {}},
    {"FusedEmbedLayerNorm",
     {
      {"ids_*", Role::kIndex, false, {{"[1|B, 1|S]", false, {{{"B"}, 0, true}, {{"S"}, 0, true}}, nullptr, nullptr}}},
      {"table_*", Role::kAffine, false, {{"[V*, H]", false, {{{"V*"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"gamma", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"beta", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[B, S, H]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"embedding_sum", Role::kData, true, {{"[B, S, H]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {}},
    {"FusedLinearLayerNorm",
     {
      {"x", Role::kData, false, {{"[..., K]", true, {{{"K"}, 0, false}}, nullptr, nullptr}}},
      {"weight", Role::kData, false, {{"[K, H]", false, {{{"K"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"bias", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"gamma", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"beta", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[..., H]", true, {{{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {}},
    {"FusedSkipLayerNorm",
     {
      {"x", Role::kData, false, {{"[..., H]", true, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"skip", Role::kData, false, {{"[..., H]", true, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"bias", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"gamma", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"beta", Role::kAffine, true, {{"[H]", false, {{{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[..., H]", true, {{{"H"}, 0, false}}, nullptr, nullptr}}},
      {"residual_sum", Role::kData, true, {{"[..., H]", true, {{{"H"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {}},
    {"FusedSwish",
     {
      {"x", Role::kData, false, {{"[...]", true, {}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[...]", true, {}, nullptr, nullptr}}},
     },
     {}, {}},
    {"HSTUHierarchicalAttention",
     {
      {"q", Role::kData, false, {{"[B, N, h*d]", false, {{{"B"}, 0, false}, {{"N"}, 0, false}, {{"h", "d"}, 0, false}}, nullptr, nullptr}}},
      {"k", Role::kData, false, {{"[B, N, h*d]", false, {{{"B"}, 0, false}, {{"N"}, 0, false}, {{"h", "d"}, 0, false}}, nullptr, nullptr}}},
      {"v", Role::kData, false, {{"[B, N, h*dv]", false, {{{"B"}, 0, false}, {{"N"}, 0, false}, {{"h", "dv"}, 0, false}}, nullptr, nullptr}}},
      {"bias", Role::kAffine, true, {{"[1|B, 1|h, 1|N, 1|N]", false, {{{"B"}, 0, true}, {{"h"}, 0, true}, {{"N"}, 0, true}, {{"N"}, 0, true}}, "mode", "silu"}}},
      {"mask", Role::kMask, true, {{"[1|B, 1|h, 1|N, 1|N]", false, {{{"B"}, 0, true}, {{"h"}, 0, true}, {{"N"}, 0, true}, {{"N"}, 0, true}}, nullptr, nullptr}}},
      {"scale", Role::kAffine, true, {{"[1|B, 1, 1|N, 1]", false, {{{"B"}, 0, true}, {{}, 1, false}, {{"N"}, 0, true}, {{}, 1, false}}, "mode", "silu"}}},
      {"lengths", Role::kIndex, true, {{"[1|B]", false, {{{"B"}, 0, true}}, "mode", "silu"}}},
      {"u", Role::kData, true, {{"[B, N, h*dv]", false, {{{"B"}, 0, false}, {{"N"}, 0, false}, {{"h", "dv"}, 0, false}}, "mode", "silu"}}},
      {"gamma", Role::kAffine, true, {{"[h*dv]", false, {{{"h", "dv"}, 0, false}}, "mode", "silu"}, {"[h]", false, {{{"h"}, 0, false}}, "norm", "group"}}},
      {"beta", Role::kAffine, true, {{"[h*dv]", false, {{{"h", "dv"}, 0, false}}, "mode", "silu"}, {"[h]", false, {{{"h"}, 0, false}}, "norm", "group"}}},
     },
     {
      {"y", Role::kData, false, {{"[B, N, h*dv]", false, {{{"B"}, 0, false}, {{"N"}, 0, false}, {{"h", "dv"}, 0, false}}, nullptr, nullptr}}},
     },
     {{"h", "num_heads"}}, {}},
    {"HierarchicalSequenceFusion",
     {
      {"x", Role::kData, false, {{"[B, S, H]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"level_embeddings", Role::kData, false, {{"[L, H]", false, {{{"L"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"level_mask", Role::kMask, true, {{"[1|B, 1|S, 1|L]", false, {{{"B"}, 0, true}, {{"S"}, 0, true}, {{"L"}, 0, true}}, nullptr, nullptr}}},
     },
     {
      {"y", Role::kData, false, {{"[B, S, H]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"H"}, 0, false}}, nullptr, nullptr}}},
      {"level_weights", Role::kData, true, {{"[B, S, L]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"L"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {}},
    {"InteractionTritonFast",
     {
      {"E", Role::kData, true, {{"[B, F, D]", false, {{{"B"}, 0, false}, {{"F"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"dense", Role::kData, true, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"sparse", Role::kData, true, {{"[B, F-1, D]", false, {{{"B"}, 0, false}, {{"F"}, -1, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"feature_*", Role::kData, true, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"output", Role::kData, false, {{"[B, P]", false, {{{"B"}, 0, false}, {{"P"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {{"F", 1}}},
    {"SequenceRecommendationInteraction",
     {
      {"items", Role::kData, false, {{"[B, S, D]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"user", Role::kData, true, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"time_weights", Role::kAffine, true, {{"[B, S]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}}, nullptr, nullptr}}},
      {"mask", Role::kMask, true, {{"[B, S]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}}, nullptr, nullptr}}},
     },
     {
      {"scores", Role::kData, true, {{"[B, S]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}}, nullptr, nullptr}}},
      {"short_term", Role::kData, true, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"long_term", Role::kData, true, {{"[B, D]", false, {{{"B"}, 0, false}, {{"D"}, 0, false}}, nullptr, nullptr}}},
      {"cooccurrence", Role::kData, true, {{"[B, S, S]", false, {{{"B"}, 0, false}, {{"S"}, 0, false}, {{"S"}, 0, false}}, nullptr, nullptr}}},
     },
     {}, {{"D", 1}}},
  };
  for (Declaration const& item : all) {
    if (name == item.name) {
      return item;
    }
  }
  refuse("no operator ", name, " is declared");
}

}  // namespace gr
