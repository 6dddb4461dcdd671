// Two-dimensional convolution of images with few channels, such as the first layer of a network has: forward with bias
// and rectifier, and the gradients of kernel and bias and of the images.
//
// Compiled for one kernel: CHANNELS of the images, KERNEL_H lines and KERNEL_W columns, and STRIDE. The 32 threads of a
// warp take 32 output channels, so that they read the same pixels and write side by side; what a thread needs of the
// kernel, at most 27 weights, stays in its registers. Nothing is added up in an order that varies. Without the 1 in the
// launch bounds the compiler takes fewer registers for some kernels and spills.
// Axes: N images, H lines, W columns, P and Q those of the result, O outputs; layouts are NHWC and HWIO.
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

constexpr int TAPS = KERNEL_H * KERNEL_W * CHANNELS;
constexpr int PIXELS = 4;                               // of a line of the result that a thread has under way
constexpr int SPAN = (PIXELS - 1) * STRIDE + KERNEL_W;  // columns that they see

struct Sizes {
  int images, height, width, p, q, outputs, top, left;  // the last two: zeros above and to the left of an image
};
#define SIZES int images, int height, int width, int p, int q, int outputs, int top, int left
#define GIVEN Sizes{images, height, width, p, q, outputs, top, left}

// Call use(tap, r, s, c) for each line and channel with the columns that PIXELS results from column `first` on see;
// there are zeros outside the image. `at` is a line of the results of all images.
template <class Use>
__device__ __forceinline__ void each_line(const float* x, Sizes size, int at, int first, Use use) {
  const int image = at / size.p, line = at % size.p * STRIDE - size.top, column = first * STRIDE - size.left;
#pragma unroll
  for (int r = 0; r < KERNEL_H; ++r)
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      const bool inside = line + r >= 0 && line + r < size.height;
      const float* pixels = x + ((size_t)image * size.height + line + r) * size.width * CHANNELS + c;
      float seen[SPAN];
#pragma unroll
      for (int k = 0; k < SPAN; ++k) {
        const bool there = inside && column + k >= 0 && column + k < size.width;
        seen[k] = there ? __ldg(pixels + (column + k) * CHANNELS) : 0.f;
      }
      use(seen, r, c);
    }
}

__device__ __forceinline__ int tap(int r, int s, int c) { return (r * KERNEL_W + s) * CHANNELS + c; }

// The gradient before the rectifier, if there is one; then y is what it returned.
__device__ __forceinline__ float slope(const float* y, const float* dy, size_t i) {
  return y && !(__ldg(y + i) > 0.f) ? 0.f : __ldg(dy + i);
}

// A warp takes a line of the results; grid ceil(N P / warps), ceil(O / 32).
extern "C" __global__ void __launch_bounds__(256, 1)
conv2d_forward(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
               float* __restrict__ y, SIZES, int rectify) {
  const int o = blockIdx.y * 32 + threadIdx.x % 32, at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= images * p || o >= outputs) return;
  float weights[TAPS];
#pragma unroll
  for (int k = 0; k < TAPS; ++k) weights[k] = __ldg(w + (size_t)k * outputs + o);
  const float bias = __ldg(b + o);
  for (int first = 0; first < q; first += PIXELS) {
    float sums[PIXELS];
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) sums[k] = bias;
    each_line(x, GIVEN, at, first, [&](const float* seen, int r, int c) {
#pragma unroll
      for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
        for (int k = 0; k < PIXELS; ++k) sums[k] = fmaf(seen[k * STRIDE + s], weights[tap(r, s, c)], sums[k]);
    });
#pragma unroll
    for (int k = 0; k < PIXELS; ++k)
      if (first + k < q) y[((size_t)at * q + first + k) * outputs + o] = rectify && sums[k] < 0.f ? 0.f : sums[k];
  }
}

// Each block adds up some lines and leaves the gradients of kernel and bias in sums (blocks, TAPS + 1, O), the bias
// last; to be added up over the blocks. Grid blocks, ceil(O / 32). Shared memory: float[warps][TAPS + 1][32].
extern "C" __global__ void __launch_bounds__(256, 1)
conv2d_weights(const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ dy,
               float* __restrict__ sums, SIZES) {
  DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, o = blockIdx.y * 32 + lane;
  float own[TAPS] = {}, bias = 0.f;
  if (o < outputs)
    for (int at = blockIdx.x * warps + warp; at < images * p; at += gridDim.x * warps)
      for (int first = 0; first < q; first += PIXELS) {
        float dz[PIXELS];
#pragma unroll
        for (int k = 0; k < PIXELS; ++k) {
          dz[k] = first + k < q ? slope(y, dy, ((size_t)at * q + first + k) * outputs + o) : 0.f;
          bias += dz[k];
        }
        each_line(x, GIVEN, at, first, [&](const float* seen, int r, int c) {
#pragma unroll
          for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) own[tap(r, s, c)] = fmaf(seen[k * STRIDE + s], dz[k], own[tap(r, s, c)]);
        });
      }
#pragma unroll
  for (int k = 0; k < TAPS; ++k) shared[(warp * (TAPS + 1) + k) * 32 + lane] = own[k];
  shared[(warp * (TAPS + 1) + TAPS) * 32 + lane] = bias;
  __syncthreads();
  for (int k = warp; k <= TAPS; k += warps) {
    float sum = 0.f;
    for (int other = 0; other < warps; ++other) sum += shared[(other * (TAPS + 1) + k) * 32 + lane];
    if (o < outputs) sums[((size_t)blockIdx.x * (TAPS + 1) + k) * outputs + o] = sum;
  }
}

// A warp takes a line of the images; grid ceil(N H / warps).
extern "C" __global__ void __launch_bounds__(256, 1)
conv2d_images(const float* __restrict__ y, const float* __restrict__ dy, const float* __restrict__ w,
              float* __restrict__ dx, SIZES) {
  const int lane = threadIdx.x % 32, at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= images * height) return;
  const int image = at / height, line = at % height + top;
  for (int column = 0; column < width; ++column) {
    float sums[CHANNELS] = {};
    for (int o = lane; o < outputs; o += 32)
      for (int r = 0; r < KERNEL_H; ++r)
        for (int s = 0; s < KERNEL_W; ++s) {
          const int i = line - r, j = column + left - s;
          if (i < 0 || j < 0 || i % STRIDE || j % STRIDE || i / STRIDE >= p || j / STRIDE >= q) continue;
          const float dz = slope(y, dy, (((size_t)image * p + i / STRIDE) * q + j / STRIDE) * outputs + o);
          for (int c = 0; c < CHANNELS; ++c) sums[c] = fmaf(dz, __ldg(w + (size_t)tap(r, s, c) * outputs + o), sums[c]);
        }
    for (int c = 0; c < CHANNELS; ++c) {
      for (int mask = 16; mask; mask /= 2) sums[c] += __shfl_xor_sync(~0u, sums[c], mask);
      if (lane == 0) dx[((size_t)at * width + column) * CHANNELS + c] = sums[c];
    }
  }
}

#ifdef EMULATED
EMULATE(conv2d_forward)
EMULATE(conv2d_weights)
EMULATE(conv2d_images)
#endif
