// All kernels for one set of instructions: LANES floats to a vector, TABLE the name of what holds them.
#include "hstu.h"
#include "interaction.h"
#include "rows.h"
#include "sequence.h"

namespace gr {

extern "C" Kernels const TABLE{
    LANES == 16  ? "avx512"
    : LANES == 8 ? "avx2"
                 : "plain",
    hstuScratch,
    hstu,
    hstuExtents,
    hstuSquare,
    interactionScratch,
    interaction,
    normSumScratch,
    normSum,
    swish,
    fmScratch,
    fm,
    fusionScratch,
    fusion,
    sequenceScratch,
    interests,
    cooccurrence,
};

}  // namespace gr
