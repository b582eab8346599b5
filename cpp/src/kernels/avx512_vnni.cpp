// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
#if defined(__x86_64__) || defined(_M_X64)

#include "lemur/kernels/vnni.hpp"

namespace lemur {

const KernelTable kAvx512VnniKernels = {"avx512_vnni",
                                        update_maxima<Avx512>,
                                        products<Avx512>,
                                        int8_maxima<Vnni>,
                                        int8_document<Vnni>,
                                        int8_dots<Vnni>,
                                        activate,
                                        normalise,
                                        widen,
                                        as_bytes,
                                        update_nearest,
                                        byte_maxima<Bytes32>,
                                        match_sums,
                                        small_rows_64};

}  // namespace lemur

#endif
