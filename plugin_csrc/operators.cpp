// Every operator of the library.
#include "base/operator.h"

namespace gr {

Entry fusedEmbedLayerNorm();
Entry fusedSkipLayerNorm();
Entry fusedSwish();
Entry hierarchicalSequenceFusion();

std::vector<Entry> const& operators() {
  static std::vector<Entry> const all = {
      fusedEmbedLayerNorm(),
      fusedSkipLayerNorm(),
      fusedSwish(),
      hierarchicalSequenceFusion(),
  };
  return all;
}

}  // namespace gr
