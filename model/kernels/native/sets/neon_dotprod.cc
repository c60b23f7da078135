#define ISA kNeonDotprod
#define ISA_NAME "neon_dotprod"
#include "kernels.inc"
