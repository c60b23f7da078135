#define ISA kAvx512
#define ISA_NAME "avx512"
#include "kernels.inc"
