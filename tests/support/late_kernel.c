/* SPDX-License-Identifier: Apache-2.0 */
#include "uhmm/uhmm.h"

/* Writes 42 to the word whose address is the argument. */
__attribute__((visibility("default"))) void late_kernel(const uhmm_kernel_item* item, void* args) {
  (void)item;
  **(int**)args = 42;
}
