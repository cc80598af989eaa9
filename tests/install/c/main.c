/* SPDX-License-Identifier: Apache-2.0 */
/* A C11 program of somebody else, built against an installed uhmm. */
#include <stdio.h>
#include <string.h>
#include <uhmm/uhmm.h>

#define SKIPPED 77

static int failed(const char* call, uhmm_status status) {
  fprintf(stderr, "%s: %s: %s\n", call, uhmm_status_name(status), uhmm_error_detail());
  return 1;
}

int main(void) {
  enum { kBytes = 1 << 20 };
  uhmm_config config = UHMM_CONFIG_INIT;
  uhmm_migrate_result moved = UHMM_MIGRATE_RESULT_INIT;
  unsigned char* memory;
  uhmm_status status;
  size_t i;

  if (uhmm_version() != UHMM_VERSION) {
    fprintf(stderr, "header %d, library %u\n", UHMM_VERSION, (unsigned)uhmm_version());
    return 1;
  }
  status = uhmm_init(&config);
  if (status == UHMM_ERR_NOT_SUPPORTED || status == UHMM_ERR_PERMISSION) {
    failed("uhmm_init", status);
    return SKIPPED;
  }
  if (status != UHMM_OK) return failed("uhmm_init", status);

  memory = uhmm_malloc(kBytes);
  if (memory == NULL) return failed("uhmm_malloc", UHMM_ERR_NO_MEMORY);
  for (i = 0; i < kBytes; ++i) memory[i] = (unsigned char)(i * 31 + (i >> 12));

  status = uhmm_migrate(memory, kBytes, 1, &moved);
  if (status != UHMM_OK) return failed("uhmm_migrate", status);
  if (moved.pages_moved < kBytes / 4096) {
    fprintf(stderr, "only %llu pages moved\n", (unsigned long long)moved.pages_moved);
    return 1;
  }
  for (i = 0; i < kBytes; ++i) {
    if (memory[i] != (unsigned char)(i * 31 + (i >> 12))) {
      fprintf(stderr, "byte %zu is wrong\n", i);
      return 1;
    }
  }
  uhmm_free(memory);
  status = uhmm_shutdown();
  if (status != UHMM_OK) return failed("uhmm_shutdown", status);
  printf("uhmm %s: %llu pages there and back\n", uhmm_version_string(), (unsigned long long)moved.pages_moved);
  return 0;
}
