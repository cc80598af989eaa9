/* SPDX-License-Identifier: Apache-2.0 */
/* samples/hello.cpp in C11: cc hello_c.c $(pkg-config --cflags --libs uhmm) */
#include <stdio.h>
#include <stdlib.h>

#include <uhmm/uhmm.h>

static void multiply(const uhmm_kernel_item* item, void* args) {
  double* numbers = *(double**)args; /* the same pointer on both sides */
  for (int i = 0; i < 1000; ++i) numbers[item->index[0] * 1000 + i] *= 14.0;
}

static int fail(const char* call, uhmm_status status) {
  fprintf(stderr, "%s: %s: %s\n", call, uhmm_status_name(status), uhmm_error_detail());
  return 1;
}

int main(void) {
  const size_t count = 1000000;
  double* numbers = malloc(count * sizeof *numbers); /* ordinary memory */
  if (numbers == NULL) return 1;
  for (size_t i = 0; i < count; ++i) numbers[i] = 3.0;

  uhmm_status status = uhmm_init(NULL);
  if (status != UHMM_OK) return fail("uhmm_init", status);
  status = uhmm_register(numbers, count * sizeof *numbers);
  if (status != UHMM_OK) return fail("uhmm_register", status);

  uhmm_stream stream = 0;
  status = uhmm_stream_create(1, &stream);
  if (status != UHMM_OK) return fail("uhmm_stream_create", status);
  uhmm_launch_desc launch = UHMM_LAUNCH_DESC_INIT;
  launch.kernel = multiply;
  launch.args = &numbers;
  launch.args_size = sizeof numbers;
  launch.grid[0] = 1000;
  status = uhmm_launch(stream, &launch);
  if (status != UHMM_OK) return fail("uhmm_launch", status);
  status = uhmm_stream_synchronize(stream);
  if (status != UHMM_OK) return fail("uhmm_stream_synchronize", status);

  printf("%g\n", numbers[123456]); /* 42: a plain load brings the page back */
  status = uhmm_shutdown();
  if (status != UHMM_OK) return fail("uhmm_shutdown", status);
  free(numbers);
  return 0;
}
