#define ISA kAvxVnni
#define ISA_NAME "avxvnni"
#include "kernels.inc"
