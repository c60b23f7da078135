#define ISA kPortable
#define ISA_NAME "portable"
#include "kernels.inc"
