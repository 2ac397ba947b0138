// Every operator of the library.
#include "base/operator.h"

namespace gr {

Entry fmInteraction();
Entry fusedAttentionLayerNorm();
Entry fusedEmbedLayerNorm();
Entry fusedLinearLayerNorm();
Entry fusedSkipLayerNorm();
Entry fusedSwish();
Entry hierarchicalSequenceFusion();
Entry hstuHierarchicalAttention();
Entry interactionTritonFast();
Entry sequenceRecommendationInteraction();

std::vector<Entry> const& operators() {
  static std::vector<Entry> const all = {
      fmInteraction(),
      fusedAttentionLayerNorm(),
      fusedEmbedLayerNorm(),
      fusedLinearLayerNorm(),
      fusedSkipLayerNorm(),
      fusedSwish(),
      hierarchicalSequenceFusion(),
      hstuHierarchicalAttention(),
      interactionTritonFast(),
      sequenceRecommendationInteraction(),
  };
  return all;
}

}  // namespace gr
