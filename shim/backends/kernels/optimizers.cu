// The optimizers' steps, each one pass over a weight, its gradient and its states; see shim/models/optimizers.py.
//
// `lr` is the learning rate of the step, Adam's with its corrections. A running average moves towards a value by `mix`,
// one minus its rho or beta. The kernels for rows take the gradient of a table (V, W) as rows (R, W).
#ifdef EMULATED
#include "emulation.h"
#endif

constexpr int PER_THREAD = 4;  // elements, a block apart, so that several reads are under way

// Call step(i) for each element of this thread; one block for blockDim.x * PER_THREAD elements.
template <class Step>
__device__ __forceinline__ void each(unsigned size, Step step) {
  const unsigned start = blockIdx.x * blockDim.x * PER_THREAD + threadIdx.x;
#pragma unroll
  for (int k = 0; k < PER_THREAD; ++k) {
    const unsigned i = start + k * blockDim.x;
    if (i < size) step(i);
  }
}

__device__ __forceinline__ float average(float before, float value, float mix) {
  return fmaf(mix, value - before, before);
}

__device__ __forceinline__ void adam_step(float* p, float* m, float* v, float g, float lr, float mix_1, float mix_2,
                                          float epsilon) {
  *m = average(*m, g, mix_1);
  *v = average(*v, g * g, mix_2);
  *p -= lr * *m / (sqrtf(*v) + epsilon);
}

extern "C" __global__ void __launch_bounds__(256) sgd(float* __restrict__ p, const float* __restrict__ g, unsigned size,
                                                      float lr) {
  each(size, [&](unsigned i) { p[i] -= lr * g[i]; });
}

extern "C" __global__ void __launch_bounds__(256)
rmsprop(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ v, unsigned size, float lr, float mix,
        float epsilon) {
  each(size, [&](unsigned i) {
    v[i] = average(v[i], g[i] * g[i], mix);
    p[i] -= lr * g[i] / sqrtf(v[i] + epsilon);
  });
}

extern "C" __global__ void __launch_bounds__(256)
adam(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v, unsigned size,
     float lr, float mix_1, float mix_2, float epsilon) {
  each(size, [&](unsigned i) { adam_step(p + i, m + i, v + i, g[i], lr, mix_1, mix_2, epsilon); });
}

extern "C" __global__ void __launch_bounds__(256)
adadelta(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ a, float* __restrict__ u, unsigned size,
         float lr, float mix, float epsilon) {
  each(size, [&](unsigned i) {
    a[i] = average(a[i], g[i] * g[i], mix);
    const float d = g[i] * sqrtf((u[i] + epsilon) / (a[i] + epsilon));
    u[i] = average(u[i], d * d, mix);
    p[i] -= lr * d;
  });
}

// Move the rows `ids` (R) of a table alone, each of them once; `size` is R W.
extern "C" __global__ void __launch_bounds__(256)
sgd_rows(float* __restrict__ p, const int* __restrict__ ids, const float* __restrict__ rows, unsigned size,
         unsigned width, float lr) {
  each(size, [&](unsigned i) { p[(size_t)ids[i / width] * width + i % width] -= lr * rows[i]; });
}

// Move a whole table; `slots` (V) is the number of each row in `rows`, or -1 where its gradient is zero.
extern "C" __global__ void __launch_bounds__(256)
adam_rows(float* __restrict__ p, const int* __restrict__ slots, const float* __restrict__ rows, float* __restrict__ m,
          float* __restrict__ v, unsigned size, unsigned width, float lr, float mix_1, float mix_2, float epsilon) {
  each(size, [&](unsigned i) {
    const int slot = slots[i / width];
    const float g = slot < 0 ? 0.f : rows[(size_t)slot * width + i % width];
    adam_step(p + i, m + i, v + i, g, lr, mix_1, mix_2, epsilon);
  });
}

#ifdef EMULATED
EMULATE(sgd)
EMULATE(rmsprop)
EMULATE(adam)
EMULATE(adadelta)
EMULATE(sgd_rows)
EMULATE(adam_rows)
#endif
