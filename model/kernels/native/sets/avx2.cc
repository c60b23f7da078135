#define ISA kAvx2
#define ISA_NAME "avx2"
#include "kernels.inc"
