// The kernels in use, for the handlers.

#ifndef DISTAFF_DISPATCH_H_
#define DISTAFF_DISPATCH_H_

#include "kernels.h"

namespace distaff {

// The table of the CPU's best instruction set, or that which a test selected.
const Kernels& kernels();

}  // namespace distaff

#endif  // DISTAFF_DISPATCH_H_
